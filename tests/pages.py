"""The pages of the repository, the commands and examples that they show, and the module that makes the site of them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import typer

from prunetune.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/results").glob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced blocks of some kinds."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for kind, text in found if kind in kinds]


def commands() -> list[tuple[str, str]]:
    """(page, line) of every command line that a page shows."""
    lines = [
        (p.name, line) for p in PAGES for block in blocks(p, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [(page, part.strip()) for page, line in lines for part in re.split(r"&&(?![^#]*#)", line) if part.strip()]


def builder() -> Any:
    """docs/build.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(line: str) -> None:
    """Fails if a line is no command that there is, with options that there are."""
    words = [w for w in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    if not words:
        return
    program, *rest = words
    program = Path(program).name
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), line
    elif program == "prunetune":
        rest = [w for w in rest if w not in ("--verbose", "--quiet")]
        if rest != ["--version"]:
            command = typer.main.get_command(app).commands[rest[0]]  # type: ignore[attr-defined]
            command.make_context(rest[0], rest[1:])
    elif program in ("python", "run", "tables") or program.endswith(".sh"):
        script = next((w for w in words if "/" in w and not w.startswith(("http", ".venv"))), None)
        assert script is None or (ROOT / script).exists(), line
    elif program == "pip":
        extras = [e for w in rest for e in re.findall(r"\[([\w,]+)\]", w)]
        assert {x for e in extras for x in e.split(",")} <= set(PROJECT["optional-dependencies"]), line
    elif words[0] == ".":
        assert rest == [".venv/bin/activate"], line
    else:
        assert program in ("git", "cd", "docker", "pre-commit"), line
