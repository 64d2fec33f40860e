"""The command line: each command is one call. Bad input is one message on stderr and exit code 2.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from prunetune.cli.evaluate import eval_
from prunetune.cli.prune import apply, plan, score
from prunetune.cli.recover import generate, tune
from prunetune.cli.results import check, compare, push, report
from prunetune.cli.run import inspect, keys, run
from prunetune.errors import PrunetuneError

app = typer.Typer(
    name="prunetune",
    help="Make a reasoning language model half its size without losing its reasoning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "keys": keys,
    "inspect": inspect,
    "score": score,
    "plan": plan,
    "apply": apply,
    "tune": tune,
    "generate": generate,
    "eval": eval_,
    "report": report,
    "compare": compare,
    "check": check,
    "push": push,
}
"""In the order of the help."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Set before torch loads OpenMP: threads that spin at a barrier starve each other on a busy machine (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are ours (ui.py)
    try:
        app()
    except SystemExit as e:
        if e.code == 130:  # typer's word for Ctrl-C
            print("interrupted; the same command continues", file=sys.stderr)
        raise
    except PrunetuneError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except ValueError as e:
        from pydantic import ValidationError

        from prunetune.recipe.explain import explain

        if not isinstance(e, ValidationError):
            raise

        print(f"error: {explain(e, 'the options')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
