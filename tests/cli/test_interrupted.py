"""Commands that are killed, run out of space or meet another one at work: the same command again ends as it should."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError
from tests.cli.test_app import call
from tests.cli.test_outputs import TABLE, at, snapshot

from prunetune.common.files import TMP
from prunetune.common.outputs import held
from prunetune.models.shards import ShardWriter
from prunetune.pruning import halfway
from prunetune.pruning.halfway import Halfway

__all__ = ["at"]
APPLY = TABLE["apply", "out"]


def lock_of(which: tuple[str, str], out: Path) -> Path:
    """Where a command holds its output: inside a folder that grows, beside what is made at once."""
    return out / ".lock" if which[0] in ("run", "eval") else out.with_name(f".{out.name}.lock{TMP}")


@pytest.mark.parametrize("which", TABLE, ids="-".join)
def test_the_second_on_one_output_is_refused(
    which: tuple[str, str], at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with held(lock_of(which, out), out):
        before = snapshot(tmp_path)
        code, _, err = call(capsys, *TABLE[which](at, out))
        assert code == 2 and "another prunetune process is working here" in err and str(out) in err, err
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["score", "score --criterion contribution", "compensate"])
def test_by_hand_too_it_goes_on_from_the_last_batches(
    command: str, at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", at / "rows.jsonl", "--samples", 40, "--device", "cpu"]
    given = [*command.split(), *([at / "p.json"] if command == "compensate" else []), at / "model", *data]
    assert call(capsys, *given, "-o", tmp_path / "straight")[0] == 0
    real, seen, stops = Halfway.reached, list[int](), 2

    def reached(self: Halfway, done: int, total: int, state: Callable[[], dict[str, Any]], **more: bool) -> None:
        real(self, done, total, state, **more)
        seen.append(done)
        if len(seen) == stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(halfway, "SECONDS", 0.0)
    monkeypatch.setattr(Halfway, "reached", reached)
    code, _, err = call(capsys, *given, "-o", tmp_path / "out")
    assert code == 130 and "the same command continues" in err and not (tmp_path / "out").exists()
    before, stops = seen[-1], 0
    seen.clear()
    assert call(capsys, *given, "-o", tmp_path / "out")[0] == 0
    assert seen[0] > before, "what was done is not done again"
    assert (tmp_path / "out").read_bytes() == (tmp_path / "straight").read_bytes()
    assert not [p for p in tmp_path.iterdir() if ".half" in p.name]


def test_tune_killed_while_another_waits(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, settings = tmp_path / "out", at / "often.yaml"
    settings.write_text("{batch_size: 4, micro_batch_size: 4, precision: fp32, checkpoint_minutes: 1.0e-9}")
    words = ["tune", "cpt", at / "model", out, "--data", at / "rows.jsonl", "--config", settings, "--device", "cpu"]
    args = [*words, "--samples", 96]
    work = tmp_path / ".out.work"
    child = subprocess.Popen(
        [sys.executable, "-m", "prunetune", *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list(work.glob("checkpoint-*/whole.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    code, _, err = call(capsys, *args)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it was to be at work still"
    assert code == 2 and "another prunetune process is working here" in err
    code, _, err = call(capsys, *words, "--samples", 48)
    assert code == 2 and "a call with other arguments has left its unfinished work here" in err
    assert list(work.glob("checkpoint-*"))
    code, _, err = call(capsys, *args)
    assert code == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.key", "out"]
    before = snapshot(tmp_path)
    code, _, err = call(capsys, *args)
    assert code == 0 and "made already" in err
    code, _, err = call(capsys, *words, "--samples", 48)
    assert code == 2 and "made with other arguments" in err
    assert snapshot(tmp_path) == before


def straight(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, bytes | str]:
    assert call(capsys, *APPLY(at, tmp_path / "out"))[0] == 0
    found = snapshot(tmp_path)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / ".out.key").unlink()
    return found


@pytest.mark.parametrize("instant", range(0, 30, 10))
def test_apply_killed_half_way(
    at: Path, tmp_path: Path, instant: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = straight(at, tmp_path, capsys)
    child = os.fork()
    if child == 0:
        real, calls = ShardWriter.write, iter(range(1000))

        def write(self: ShardWriter, name: str, tensor: object) -> None:
            if next(calls) == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, name, tensor)  # type: ignore[arg-type]

        ShardWriter.write = write  # type: ignore[method-assign,assignment]
        call(capsys, *APPLY(at, tmp_path / "out"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and snapshot(tmp_path)
    code, _, err = call(capsys, *APPLY(at, tmp_path / "out"))
    assert code == 0, err
    assert snapshot(tmp_path) == wanted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_apply_on_a_disk_that_fills_up(
    at: Path, tmp_path: Path, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, real = straight(at, tmp_path, capsys), ShardWriter.write
    with monkeypatch.context() as patch:
        left = iter(range(10))

        def write(self: ShardWriter, name: str, tensor: object) -> None:
            if next(left, None) is None:
                raise OSError(code, os.strerror(code))
            real(self, name, tensor)  # type: ignore[arg-type]

        patch.setattr(ShardWriter, "write", write)
        status, _, err = call(capsys, *APPLY(at, tmp_path / "out"))
    assert status == 2 and "no space left on the disk" in err and "run again" in err
    assert snapshot(tmp_path) == {}, "what is half made takes up no space"
    assert call(capsys, *APPLY(at, tmp_path / "out"))[0] == 0
    assert snapshot(tmp_path) == wanted


@pytest.mark.parametrize("which", [("apply", "out"), ("tune", "out")], ids="-".join)
def test_space_is_checked_before_the_first_byte(
    which: tuple[str, str],
    at: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: few)
    code, _, err = call(capsys, *TABLE[which](at, tmp_path / "out"))
    assert code == 2 and "no space left for the" in err and "0.0 MB free" in err, err
    assert not (tmp_path / "out").exists()


def test_score_on_a_full_disk(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **more: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    args = TABLE["score", "out"](at, tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "serialize_file", full)
        code, _, err = call(capsys, *args)
    assert code == 2 and "no space left on the disk" in err and "Traceback" not in err, err
    assert snapshot(tmp_path) == {}
    assert call(capsys, *args)[0] == 0


def test_eval_with_other_settings_keeps_the_answers(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = TABLE["eval", "out"](at, tmp_path / "out")
    assert call(capsys, *args)[0] == 0
    file = tmp_path / "out" / "sums.jsonl"
    before = file.read_bytes()
    lines = before.splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1].replace(b'"correct": false', b'"correct":  true'))
    code, _, err = call(capsys, *args)
    assert code == 0 and "1 answers are not as they were written, and are asked again" in err
    again = [line.partition(b'"seconds"')[0] for line in file.read_bytes().splitlines()]
    assert again == [line.partition(b'"seconds"')[0] for line in before.splitlines()]
    (at / "other.jsonl").write_text((at / "rows.jsonl").read_text().replace("####", "is"))
    other = [str(x) for x in args]
    other[other.index("number")] = "exact"
    before = file.read_bytes()
    call(capsys, *other)
    assert file.read_bytes() == before, "what was made is not thrown away"
