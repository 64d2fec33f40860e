"""Two and more processes, each with its share of the batches, give the scores, moments and patches of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.in_processes import in_processes
from tests.tiny import tiny_model

from prunetune.common.device import Processes
from prunetune.common.files import mark
from prunetune.pruning import halfway
from prunetune.pruning.compensate import compensate
from prunetune.pruning.folding.together import together
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.least_squares import Gram
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import Batch, score

# Batches are the same however many processes share them, so that only the order of additions differs: of fp64 numbers,
# or of fp32 ones where a matrix is wide. That changes the last places of a sum, and is why this is no `torch.equal`.
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-9}


def batches(count: int) -> list[Batch]:
    made = torch.Generator().manual_seed(1)
    found = []
    for i in range(count):
        ids = torch.randint(3, 100, (2, 32 - i), generator=made)
        mask = torch.ones_like(ids)
        mask[1, -3:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("criterion", "reduce", "more"),
    [
        ("greedy", "mean", ()),
        ("leverage", "mean", ("heads",)),
        ("contribution", "q99", ("heads",)),
        ("wanda", "mean", ()),
        ("activation", "mean", ()),
        ("taylor", "mean", ()),
        ("ptl_vote", "mean", ()),
        ("magnitude", "mean", ()),
    ],
)
def test_scores_are_those_of_one_process(criterion: str, reduce: str, more: tuple[str, ...], model: Any) -> None:
    ways: dict[str, Any] = {"neuron_criterion": criterion, "reduce": reduce, "more": more}
    one = score(model, batches(13), **ways)
    for two in in_processes(2, lambda p: score(model, batches(13), **ways, processes=p)):
        assert two.tokens == one.tokens
        for name in ("neurons", "layers", "layers_max"):
            torch.testing.assert_close(getattr(two, name), getattr(one, name), **CLOSE)
        assert two.blocks.keys() == one.blocks.keys()
        for name in one.blocks:
            torch.testing.assert_close(two.blocks[name], one.blocks[name], **CLOSE)


@pytest.mark.parametrize("criterion", ["greedy", "contribution"])
def test_experts_are_scored_as_by_one_process(criterion: str) -> None:
    model = tiny_model("qwen3_moe")
    one = score(model, batches(12), neuron_criterion=criterion)
    for two in in_processes(2, lambda p: score(model, batches(12), neuron_criterion=criterion, processes=p)):
        torch.testing.assert_close(two.neurons, one.neurons, **CLOSE)
        torch.testing.assert_close(two.blocks["experts"], one.blocks["experts"], **CLOSE)


def test_moments_are_those_of_one_process_and_one_without_tokens_adds_none() -> None:
    x = torch.randn(40, 700, generator=torch.Generator().manual_seed(0))

    def moments(processes: Processes) -> torch.Tensor:
        gram = Gram(x.shape[1])
        for part in processes.share([x[:15], x[15:]]):
            gram.update(part)
        gram.join(processes)
        return gram.finish()

    one = moments(Processes())
    torch.testing.assert_close(one, (x.double().T @ x.double()) / 40, rtol=1e-5, atol=1e-6)
    for each in in_processes(3, moments):
        torch.testing.assert_close(each, one, rtol=1e-12, atol=1e-15)


def plan_of(gone: dict[int, tuple[int, ...]], **more: Any) -> PrunePlan:
    return PrunePlan(model_sha="", depth=4, width=48, drop_neurons=gone, **more)


HEADS: dict[str, Any] = {"sizes": {"heads": 2, "query_heads": 2}, "drop": {"heads": {i: (0,) for i in (0, 1, 3)}}}
PLANS = {
    "neurons": plan_of({i: (1, 5, 7, 20) for i in range(4)}),
    "layers and heads": plan_of({i: (1, 5) for i in (0, 1, 3)}, drop_layers=(2,), **HEADS),
}


@pytest.mark.parametrize(("name", "count"), [("neurons", 2), ("layers and heads", 8)])
def test_patches_are_those_of_one_process_even_where_some_have_no_batch(name: str, count: int, model: Any) -> None:
    plan, fitted, held = PLANS[name], batches(5), batches(7)[5:]
    one = compensate(model, plan, fitted, held_out=held)
    for two in in_processes(count, lambda p: compensate(model, plan, fitted, held_out=held, processes=p)):
        assert (two.tokens, two.held_out_tokens) == (one.tokens, one.held_out_tokens)
        assert [(f.layer, f.ridge, f.readout) for f in two.fits] == [(f.layer, f.ridge, f.readout) for f in one.fits]
        assert two.tensors.keys() == one.tensors.keys()
        for tensor in one.tensors:
            torch.testing.assert_close(two.tensors[tensor], one.tensors[tensor], rtol=1e-5, atol=1e-6)


def test_several_plans_are_folded_as_by_one_process(model: Any) -> None:
    plans = [PLANS["neurons"], plan_of({i: (3, 4, 5, 6, 8) for i in range(4)})]
    ways: dict[str, Any] = {"held_out": batches(7)[5:], "ridges": (0.01, 0.1, 1.0)}
    one = together(model, plans, batches(5), **ways)
    for two in in_processes(2, lambda p: together(model, plans, batches(5), **ways, processes=p)):
        for patch, other in zip(one, two, strict=True):
            assert patch.keys() == other.keys()
            for tensor in patch:
                torch.testing.assert_close(other[tensor], patch[tensor], rtol=1e-5, atol=1e-6)


def test_experts_are_folded_as_by_one_process() -> None:
    """One plan, and two in one walk; some processes see no token of some experts."""
    model, (fitted, held) = tiny_model("gpt_oss"), (batches(5), batches(7)[5:])
    plans = [
        plan_of({i: tuple(e * 48 + n for e in range(6) for n in range(count)) for i in range(4)}, sizes={"experts": 6})
        for count in (4, 12)
    ]
    ways: dict[str, Any] = {"held_out": held, "ridges": (0.01, 0.1, 1.0)}
    one, many = compensate(model, plans[1], fitted, **ways), together(model, plans, fitted, **ways)
    assert all(fit.experts for fit in one.fits)

    def work(processes: Processes) -> Any:
        apart = compensate(model, plans[1], fitted, **ways, processes=processes)
        return apart, together(model, plans, fitted, **ways, processes=processes)

    for two, others in in_processes(3, work):
        assert [(f.layer, f.ridge, f.experts) for f in two.fits] == [(f.layer, f.ridge, f.experts) for f in one.fits]
        for ours, theirs in zip([two.tensors, *others], [one.tensors, *many], strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


class Killed(Exception):
    """What a test raises in the middle."""


@pytest.mark.parametrize("what", ["greedy", "contribution", "compensate"])
def test_killed_between_two_saves_they_go_on_together(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    """One process has saved a part that the other has not: both take up the part before; nothing stays behind."""
    monkeypatch.setattr(halfway, "SECONDS", 0.0)
    mark(tmp_path, "run")
    model = tiny_model("llama", num_hidden_layers=12)
    plan = PrunePlan(model_sha="", depth=12, width=48, drop_neurons={i: (1, 5) for i in range(12)})
    path = tmp_path / ".result.half"

    def work(processes: Processes, progress: Any = None) -> Any:
        ways: dict[str, Any] = {"halfway": Halfway(path, "key"), "processes": processes, "progress": progress}
        if what == "compensate":
            return compensate(model, plan, batches(9), held_out=batches(11)[9:], **ways).tensors
        return {"neurons": score(model, batches(24), neuron_criterion=what, **ways).neurons}

    def killed(processes: Processes) -> None:
        def kill(done: int, total: int) -> None:
            if done >= 0.7 * total:
                raise Killed

        with pytest.raises(Killed):
            work(processes, kill)
        if processes.rank == 1 and what != "contribution":  # its newest save did not come to be
            at = Halfway(path, "key").of(processes).path
            at.with_suffix(".before.half").replace(at)

    def first_told(processes: Processes) -> tuple[int, Any]:
        told: list[int] = []
        result = work(processes, lambda done, total: told.append(done))
        return told[0], result

    one = work(Processes())
    in_processes(2, killed)
    for first, again in in_processes(2, first_told):
        assert first > 1, "it begins anew"
        for name, tensor in one.items():
            torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)
    assert list(tmp_path.glob(".result.*of2*.half"))
    Halfway(path, "key").clear()
    assert not list(tmp_path.glob(".result*"))
