"""What the site needs beside the pages (mkdocs.yml): studies, mended links, the notebook's results, error messages.

The pages are written for a reader of the repository; links go from file to file. In the site a link to a page or figure
that is part of it leads there, and a link to other files of the repository becomes plain text. One to nothing is a
warning, and so an error (`strict`). Nothing here is imported by the package.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "studies/README.md")
"""Pages outside docs/ that the site has too; a study's own page and figures come on top."""
NOTEBOOK = "notebook.ipynb"
LINK = re.compile(r"`[^`]*`|(?P<mark>!?)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<to>[^)\s]+)\)")
MESSAGES = re.compile(r"<!-- messages: (\w+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/, and the notebook as a page."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in beside():
        level = InclusionLevel.NOT_IN_NAV if path.suffix == ".md" else InclusionLevel.INCLUDED
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path), inclusion=level))
    files.remove(files.get_file_from_path(NOTEBOOK))
    files.append(File.generated(config, "notebook.md", content=notebook(ROOT / "docs" / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page's text as the site wants it."""
    here = page.file.src_uri
    inside = here in {p.relative_to(ROOT).as_posix() for p in beside()}
    markdown = MESSAGES.sub(lambda found: table(messages()[found[1]]), markdown)
    known = {f.src_uri for f in files}
    return "\n".join(
        line if code else _linked(line, here if inside else f"docs/{here}", here, known)
        for code, line in _spaced(markdown.split("\n"))
    )


def on_post_build(config: Any) -> None:
    """No page may make a reader's browser ask another host."""
    from mkdocs.exceptions import PluginError

    for path in sorted(Path(config.site_dir).rglob("*.html")):
        found = foreign(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{path.name} loads from another host: {', '.join(found)}")


def foreign(html: str) -> list[str]:
    """What a page loads from another host: scripts, styles, fonts, images, frames; links that a reader follows may."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|video|audio|embed|object|use)\b[^>]*>", html)
    loads = [t for t in tags if not re.search(r'rel="?(?:canonical|next|prev|alternate)', t)]
    found = [url for t in loads for url in re.findall(r"""(?:src|href|data)=["']?((?:https?:)?//[^"'\s>]+)""", t)]
    return found + re.findall(r"""(?:url\(|@import )["']?((?:https?:)?//[^"')\s]+)""", html)


def beside() -> list[Path]:
    """Pages and figures of the repository that are not under docs/."""
    pages = [ROOT / name for name in BESIDE if (ROOT / name).is_file()]
    return [*pages, *sorted(ROOT.glob("studies/[0-9]*/README.md")), *sorted(ROOT.glob("studies/*/figures/*.svg"))]


def _linked(line: str, file: str, here: str, known: set[str]) -> str:
    """A line whose links lead to pages of the site."""
    return LINK.sub(lambda m: _link(m, file, here, known) if m["to"] else m[0], line)


def _link(found: re.Match[str], file: str, here: str, known: set[str]) -> str:
    mark, text, to = found["mark"], found["text"], found["to"]
    if re.match(r"[a-z]+:|#", to):
        return found[0]
    path, _, anchor = to.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if mark and target == "docs/loop.svg":
        return (ROOT / target).read_text(encoding="utf-8").replace("\n", "")
    uri = target.removeprefix("docs/").replace(NOTEBOOK, "notebook.md")
    if uri not in known and (ROOT / target).exists():
        return text
    there = posixpath.relpath(uri, posixpath.dirname(here) or ".")
    return f"{mark}[{text}]({there}{'#' + anchor if anchor else ''})"


def _spaced(lines: list[str]) -> Iterator[tuple[bool, str]]:
    """(is code, line): with the blank line that Python-Markdown wants before a list or a table, and GitHub does not."""
    fence, before = "", ""
    for line in lines:
        opened = re.match(r" *(```+|~~~+)", line)
        if opened and (not fence or line.strip() == fence):
            fence = "" if fence else opened[1]
            yield True, line
        elif fence:
            yield True, line
        else:
            for start in (r"[*-] |\d+\. ", r"\|"):
                if re.match(start, line) and before and not re.match(rf"{start}| |<!--", before):
                    yield False, ""
                    break
            yield False, line
        before = line


def messages(source: Path = ROOT / "src" / "prunetune") -> dict[str, list[tuple[str, str]]]:
    """Error class -> (message, fix or what is valid) of every place in the source that makes one; `…` is what is filled in.

    Args:
        source: The package's folder.
    """
    tree = ast.parse((source / "errors.py").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {n.name: {} for n in tree.body if isinstance(n, ast.ClassDef)}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                said = _text(node.args[-1] if name == "MissingExtra" else node.args[0])
                if name in found and said:
                    given = {k.arg: _text(k.value) for k in node.keywords}
                    fix = given.get("fix") or (f"valid: {given['valid']}" if given.get("valid") else "")
                    what = {
                        "UnknownName": "unknown {}",
                        "MissingExtra": "{} needs the package …, which is not installed",
                    }
                    found[name].setdefault(what.get(name, "{}").format(said), fix)
    return {name: sorted(said.items()) for name, said in found.items()}


def _text(node: ast.expr) -> str:
    """A text in the source, with `…` where something is filled in; "" if it says nothing by itself."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        text = "".join(_text(v) if isinstance(v, ast.Constant) else "…" for v in node.values)
        return text if re.search(r"\w{2}", text) else ""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def table(said: list[tuple[str, str]]) -> str:
    """Messages and fixes as a table."""
    if not said:
        return ""

    def cell(text: str) -> str:
        parts = re.split(r"(`[^`|]*`)", " ".join(text.split()))
        return "".join(p if p[:1] == "`" else re.sub(r"([|\\`*_{}\[\]<>#])", r"\\\1", p) for p in parts)

    rows = "\n".join(f"| {cell(what)} | {cell(fix)} |" for what, fix in said)
    return f"| message | what to do |\n| --- | --- |\n{rows}\n"


def notebook(path: Path) -> str:
    """A notebook, run from first to last cell in an empty folder, as Markdown. A cell that fails is an error."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}})
        client.extra_arguments = ["--IPKernelApp.log_level=40"]  # it warns that it talks over this machine's TCP
        client.execute()
    return "\n\n".join(part for cell in book.cells for part in _cell(cell))


def _cell(cell: Any) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.outputs:
        if (name := output.get("name")) is None or name == "stdout":
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            yield f"```text\n{text.rstrip()}\n```"
