"""Two real processes under `accelerate launch` hold one model: they give what one gives, and end when they should."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.pruning.test_processes import CLOSE, PLANS, batches
from tests.tiny import tiny_folder, tiny_tokenizer
from tests.tune.test_launch import TWO

from prunetune.errors import TuneError
from prunetune.evaluation.loss import losses_of
from prunetune.evaluation.spread import Limits, Scored, answered
from prunetune.loop.workers.pool import Workers, workers
from prunetune.models.folders import load_model
from prunetune.pruning.compensate import compensate
from prunetune.pruning.scores import score


def gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 30
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_two_processes_score_fold_answer_and_measure_as_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    model, tokenizer, limits = load_model(folder), tiny_tokenizer(), Limits(8, ())
    rows: list[Scored] = [(list(range(3, 20 + i)), [(4, 20 + i)]) for i in range(6)]
    prompts, told = [row for row, _ in rows], list[tuple[int, int]]()
    others = psutil.Process().children(recursive=True)  # of other tests
    with workers(TWO, folder, "cpu") as held:
        found = held.score(
            lambda done, total: told.append((done, total)), batches=batches(13), neuron_criterion="greedy"
        )
        one = score(model, batches(13), neuron_criterion="greedy")
        torch.testing.assert_close(found.neurons, one.neurons, **CLOSE)
        assert told[-1][0] == told[-1][1]
        ways: dict[str, Any] = {"plan": PLANS["neurons"], "batches": batches(5), "held_out": batches(7)[5:]}
        patch = held.compensate(**ways)
        for name, tensor in compensate(folder, **ways).tensors.items():
            torch.testing.assert_close(patch.tensors[name], tensor, rtol=1e-5, atol=1e-6)
        assert held.losses(rows) == losses_of(model, rows, "x")
        for _ in range(2):  # the second time they have the tokenizer
            assert list(held.answers(tokenizer, prompts, limits, 2)) == list(
                answered(model, tokenizer, prompts, limits, 2)
            )
        started = [p for p in psutil.Process().children(recursive=True) if p not in others]
        assert len(started) >= 3, "a launcher and two processes"
        os.kill(max(started, key=lambda p: p.create_time()).pid, signal.SIGKILL)
        with pytest.raises(TuneError, match="a process that was to work at `score` failed"):
            held.score(batches=batches(13))
    assert gone(started)


@pytest.mark.thorough
@pytest.mark.slow
def test_what_the_processes_cannot_do_is_told_in_their_words(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(TuneError, match="no-such-option"):
        Workers("--no-such-option", folder, "cpu").losses([])
    with workers(TWO, folder, "cpu") as held, pytest.raises(TuneError, match="there are no tokens"):
        none = torch.zeros(1, 4).long()
        held.score(batches=[{"input_ids": none, "attention_mask": none}], neuron_criterion="greedy")
