"""The command line: each command is one call. Bad input is one message on stderr and exit code 2 (`net`).

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from prunetune.cli.evaluate import eval_
from prunetune.cli.net import caught
from prunetune.cli.prune import apply, compensate, plan, score, vocabulary
from prunetune.cli.recover import generate, tune
from prunetune.cli.results import check, compare, export, push, report, runs, watch
from prunetune.cli.run import family, init, inspect, keys, run
from prunetune.common.device import choose_waiting
from prunetune.common.progress import Watch, watching

app = typer.Typer(
    name="prunetune",
    help="Make a reasoning language model half its size without losing its reasoning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prunetune {version('prunetune')}")
        raise typer.Exit


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "init": init,
    "keys": keys,
    "inspect": inspect,
    "family": family,
    "score": score,
    "plan": plan,
    "compensate": compensate,
    "apply": apply,
    "vocabulary": vocabulary,
    "tune": tune,
    "generate": generate,
    "eval": eval_,
    "watch": watch,
    "runs": runs,
    "report": report,
    "compare": compare,
    "check": check,
    "export": export,
    "push": push,
}
"""In the order of the help."""
COMPUTING = ("run", "score", "compensate", "tune", "generate", "eval", "check", "export")
"""Those that compute with torch for long."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are ours (ui.py)
    words, verbose, quiet = _global_options(sys.argv[1:])
    Watch.silent = quiet
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of another encoding shows what it cannot
    shown = not words  # its help; else what is mistyped is told as everything else is
    tracebacks = verbose or os.environ.get("PRUNETUNE_TRACEBACK") == "1"
    sys.exit(caught(lambda: app(args=words, standalone_mode=shown), words, verbose=tracebacks))


@app.callback()
def _global(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No lines and bars while working; only the result.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Make a reasoning language model half its size without losing its reasoning."""
    if context.invoked_subcommand in COMPUTING and "--help" not in sys.argv:
        choose_waiting()
    context.with_resource(watching(Watch()))


def _global_options(words: list[str]) -> tuple[list[str], bool, bool]:
    """Options of the program work on either side of the command: the words with them in front, verbose, quiet."""
    end = words.index("--") if "--" in words else len(words)
    found = [w for w in words[:end] if w in ("--verbose", "--quiet")]
    rest = [w for w in words[:end] if w not in found] + words[end:]
    return [*dict.fromkeys(found), *rest], "--verbose" in found, "--quiet" in found
