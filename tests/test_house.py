"""The house's own rules (docs/architecture.md): rooms, sizes, imports, paths; and the list that turns shape checks on."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from tests.shaped import SHAPED, UNCHECKED

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "prunetune"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {p: ast.parse(p.read_text(encoding="utf-8")) for p in FILES}
FOLDERS = sorted({p.parent for p in FILES})
MOST_MODULES, MOST_LINES, MOST_FUNCTION, MOST_MEMBERS, MOST_SHARED = 16, 350, 60, 12, 9


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(p): p for p in FILES}


def test_no_file_is_longer_than_a_few_screens() -> None:
    sizes = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {n: s for n, s in sizes.items() if s > MOST_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    """Its lines from `def` to its end, docstring and signature too."""
    found = {
        f"{name_of(p)}.{f.name}": size
        for p, tree in TREES.items()
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) and (size := _lines(f)) > MOST_FUNCTION
    }
    assert found == {}


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_class_has_more_public_members_than_one_can_hold_in_mind() -> None:
    """Methods and properties; fields of a record are data."""
    found = {
        f"{name_of(p)}.{c.name}": names
        for p, tree in TREES.items()
        for c in ast.walk(tree)
        if isinstance(c, ast.ClassDef) and len(names := _members(c)) > MOST_MEMBERS
    }
    assert found == {}


def _members(node: ast.ClassDef) -> list[str]:
    return [f.name for f in node.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]


def test_no_room_has_more_modules_than_one_can_look_over() -> None:
    sizes = {name_of(f / "__init__.py"): len([p for p in f.glob("*.py") if p.name != "__init__.py"]) for f in FOLDERS}
    assert {n: s for n, s in sizes.items() if s > MOST_MODULES} == {}
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


@pytest.mark.parametrize(
    "folder", [f for f in FOLDERS if f != PACKAGE], ids=lambda f: f.relative_to(PACKAGE).as_posix()
)
def test_every_room_says_what_it_is_for_what_it_gives_and_how_to_add_to_it(folder: Path) -> None:
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    about, blank, *rest = [*said.splitlines(), "", ""]
    assert about.endswith(".") and not blank
    assert any(line.startswith(("Others take", "Nobody imports")) for line in rest)
    assert any(line.startswith("To add") for line in rest)


def test_the_tree_of_the_architecture_page_has_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("src/prunetune/\n")[2].partition("```")[0]
    shown, way = [], [""] * 4
    for depth, name in re.findall(r"^([ │]*)[├└]── (\w+)/", tree, re.M):
        way[len(depth) // 4 :] = [name]
        shown.append("/".join(way))
    assert sorted(shown) == sorted(f.relative_to(PACKAGE).as_posix() for f in FOLDERS if f != PACKAGE)


# ------------------------------------------------------------------------------------------------------------- imports


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a module imports as it is loaded or as its functions run."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            whole = [f"{node.module}.{a.name}" for a in node.names]
            found.update(n if n in NAMES else node.module for n in whole)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(TREES[path])
    return {n for n in found if n in NAMES} - {name_of(path)}


def test_no_two_files_import_each_other_by_whatever_detour() -> None:
    graph = {name: imports_of(path) for name, path in NAMES.items()}
    graph["prunetune"] = set()  # its head finds its names when they are asked for
    done: set[str] = set()
    cycles: list[list[str]] = []

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            cycles.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    assert cycles == []


# ------------------------------------------------------------------------------------------------------------- records

OPEN = re.compile(r"\b(dict|Mapping)\[str, (Any|object)\]|\bValues\b")
FOREIGN = {
    "config.json of a model, whose keys are its family's": ("models.", "schedule.reach."),
    "a recipe as its author wrote it, before it is a `Recipe`": ("recipe.",),
    "rows of a file, before anything is known of them": (
        *("common.reading.read_json_lines", "common.yaml.read_mapping", "pruning.in_memory.batches"),
    ),
    "inputs that are hashed, and what a note keeps for its maker": (
        "common.files.once",
        "loop.recovery.recover.recover",
    ),
    "tensors of a walk, for `torch.save`": ("pruning.halfway.Halfway.",),
    "options and features of another library": ("data.generators.gym_", "common.device."),
}
"""What crosses rooms as a mapping of anything, since the type is not ours to give."""


def crossing() -> set[str]:
    """Public functions that another room imports, and public methods of such classes, with an open mapping in the signature."""

    def room(name: str) -> str:
        return name.split(".")[1]

    taken = {
        (room(node.module), a.name)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunetune.")
        for a in node.names
        if path.parent == PACKAGE or room(node.module) != room(name_of(path))
    }
    found = set()
    for name, path in NAMES.items():
        for node in TREES[path].body:
            if (
                not isinstance(node, ast.FunctionDef | ast.ClassDef)
                or (name.count(".") and (room(name), node.name)) not in taken
            ):
                continue
            for f in [node] if isinstance(node, ast.FunctionDef) else node.body:
                if (
                    isinstance(f, ast.FunctionDef)
                    and (f is node or not f.name.startswith("_"))
                    and OPEN.search(_signature(f))
                ):
                    found.add(f"{name}.{node.name}{'' if f is node else '.' + f.name}".removeprefix("prunetune."))
    return found


def _signature(f: ast.FunctionDef) -> str:
    given = [a.annotation for a in ast.walk(f.args) if isinstance(a, ast.arg)]
    return " ".join(ast.unparse(a) for a in [*given, f.returns] if a)


def test_no_record_crosses_rooms_as_a_mapping_of_anything() -> None:
    """A record is a type; `to_json` and `from_json` are where it becomes a file."""
    known, found = tuple(p for names in FOREIGN.values() for p in names), crossing()
    assert {n for n in found if not n.startswith(known) and not n.endswith(("to_json", "from_json"))} == set()
    assert not [p for p in known if not any(n.startswith(p) for n in found)], "no longer so: take it off the list"


# ---------------------------------------------------------------------------------------------------------- duplicates


def test_no_two_places_share_ten_lines() -> None:
    """Imports, comments and lone brackets aside; white space counts as one blank."""
    places: dict[tuple[str, ...], list[str]] = {}
    for name, path in NAMES.items():
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [x for x in lines if re.search(r"\w", x) and not x.startswith(("#", "import ", "from "))]
        for at in range(len(lines) - MOST_SHARED):
            places.setdefault(tuple(lines[at : at + MOST_SHARED + 1]), []).append(name)
    assert [found for found in places.values() if len(found) > 1] == []


# --------------------------------------------------------------------------------------------------------------- paths

FIXED = re.compile(r"""["'](/(?:work|home|root|mnt|data|scratch|Users)/(?!me/)[^"']*)["']""")
"""A path that only one machine has; the system's own (/proc, /sys, /usr, /dev, /tmp of a sandbox) are the same on all, and `me` is nobody."""


def test_no_path_of_one_machine_is_written_down() -> None:
    listed = subprocess.run(["git", "ls-files", "src", "tests"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {
        f: (ROOT / f).read_text(encoding="utf-8", errors="replace") for f in listed.stdout.split() if f[-3:] == ".py"
    }
    found = {f: hits for f, text in texts.items() if f != "tests/test_house.py" and (hits := FIXED.findall(text))}
    assert found == {}


# --------------------------------------------------------------------------------------------------- checks of shapes


def test_the_list_that_turns_shape_checks_on_names_modules_that_are_there() -> None:
    """A wrong name there would switch them off in silence."""
    assert len(SHAPED) == len(set(SHAPED)) >= 12
    for name in SHAPED:
        assert importlib.util.find_spec(name) is not None, name


def test_every_module_whose_functions_name_shapes_is_on_it() -> None:
    jaxtyped = {n for n, p in NAMES.items() if "jaxtyping" in imported(p)}
    assert {n for n in jaxtyped if not n.startswith((*SHAPED, *UNCHECKED))} == set()


def imported(path: Path) -> set[str]:
    return {n.module or "" for n in ast.walk(TREES[path]) if isinstance(n, ast.ImportFrom)}
