"""The net under every command: one message, one exit code, whatever happens inside."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
import typer

from prunetune.cli.net import caught
from prunetune.common import stopping
from prunetune.common.progress import Watch
from prunetune.errors import PlanError


def throws(e: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise e

    return work


@pytest.mark.parametrize(
    ("e", "code", "says"),
    [
        (PlanError("no plan", fix="make one"), 2, "error: no plan\n  fix:   make one"),
        (MemoryError(), 2, "too little memory (MemoryError)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 2, "too little memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "smaller batch_size"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), 2, "refuses this path: permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.json"), 2, "x.json"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 2, "is a directory"),
        (ZeroDivisionError("division by zero"), 1, "a fault of prunetune itself, not of yours: division by zero"),
        (OSError(errno.ECONNRESET, "reset"), 1, "a fault of prunetune itself"),
        (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError at"),
        (KeyError("x" * 10**6), 1, "characters)"),
        (ValueError("\x1b[31m\ud800"), 1, r"\x1b[31m\ud800"),
        (KeyboardInterrupt(), 130, "interrupted by Ctrl-C; the same command continues: prunetune --quiet run 'a b.yaml'"),
        (SystemExit(3), 3, ""),
        (SystemExit("told by a library"), 2, "error: told by a library"),
        (GeneratorExit(), 1, "GeneratorExit"),
    ],
)  # fmt: skip
def test_everything_is_one_message(e: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert caught(throws(e), ["--quiet", "run", "a b.yaml"], verbose=False) == code
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said and len(said) < 1500


def test_a_fault_of_ours_has_a_line_to_report_and_a_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        from prunetune.pruning.plan import make_plan

        make_plan([], [], "secret")

    assert caught(work, ["plan", "/home/me/secret"], verbose=False) == 1
    said = capsys.readouterr().err
    line = next(x for x in said.splitlines() if "report:" in x)
    assert "plan: IndexError at pruning/plan.py:" in line and "in make_plan" in line and "python 3." in line
    assert "secret" not in line and "Traceback" not in said and "prunetune --verbose plan" in said
    assert caught(work, ["plan"], verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code", "name"), [(1, 129, "SIGHUP"), (2, 130, "Ctrl-C"), (15, 143, "SIGTERM")])
def test_signals_say_how_to_go_on(number: int, code: int, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tidied: list[int] = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # supervisors repeat it: what is being tidied is not cut short
            tidied.append(number)

    before = signal.getsignal(signal.SIGTERM)
    assert caught(work, ["run", "demo"], verbose=False) == code
    assert (
        tidied == [number]
        and f"interrupted by {name}; the same command continues: prunetune run demo" in capsys.readouterr().err
    )
    app = typer.Typer()
    app.command()(lambda: signal.raise_signal(number))
    assert caught(lambda: app(args=[]), ["plan", "x"], verbose=False) == code, "through typer, which knows Ctrl-C alone"
    assert "start it again: prunetune plan x" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before and stopping.asked() is None


def test_stopping_waits_for_the_end_of_a_step_but_not_twice() -> None:
    with stopping.listening():
        with stopping.deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stopping.asked() == signal.SIGTERM
            with pytest.raises(stopping.Stopped):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(stopping.Stopped):
            stopping.raise_if_asked()
    stopping.raise_if_asked()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping.listening():
        signal.raise_signal(signal.SIGHUP)  # nohup
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m prunetune keys | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("recipe: ") and done.stdout.splitlines()[1] in ("0", "1") and done.stderr == ""


def test_global_options_work_on_either_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunetune.cli import app

    for words in (["--verbose", "--quiet", "keys", "zzz"], ["keys", "zzz", "--quiet", "--verbose"]):
        monkeypatch.setattr(sys, "argv", ["prunetune", *words])
        with pytest.raises(SystemExit) as code:
            app.main()
        said = capsys.readouterr().err
        assert code.value.code == 2 and "Traceback" in said and "no key speaks of this" in said
        assert Watch().quiet
    monkeypatch.setattr(sys, "argv", ["prunetune", "keys", "zzz"])
    with pytest.raises(SystemExit):
        app.main()
    assert "Traceback" not in capsys.readouterr().err and not Watch().quiet
