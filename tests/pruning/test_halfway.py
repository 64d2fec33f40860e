"""Killed in scoring, ranking or compensation: the next start goes on, repeats a tenth at most, and ends bit for bit the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_model

from prunetune.common.files import mark
from prunetune.pruning import halfway
from prunetune.pruning.compensate import compensate
from prunetune.pruning.halfway import SHARE, Halfway
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import score

DEPTH = 20
PLANS = {
    "neurons": PrunePlan(model_sha="", depth=DEPTH, width=16, drop_neurons={i: (1, 5, 7) for i in range(DEPTH)}),
    "layers too": PrunePlan(
        model_sha="",
        depth=DEPTH,
        width=16,
        drop_layers=(2, 9),
        drop_neurons={i: (1, 5) for i in range(DEPTH) if i not in (2, 9)},
    ),
}


class Killed(Exception):
    """What a test raises in the middle."""


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(halfway, "SECONDS", 0.0)
    mark(tmp_path, "run")
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", num_hidden_layers=DEPTH, hidden_size=16, intermediate_size=16, head_dim=4)


def batch(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, -seed % 5 - 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


BATCHES = [batch(i) for i in range(DEPTH)]


def killed_and_again(work: Callable[..., Any], path: Path, seed: int) -> tuple[Any, int, int, int]:
    """(the result, units done when it was killed, the first that the second start told as done, all)."""
    state, told = Halfway(path, "key"), list[tuple[int, int]]()
    moment = random.Random(seed).uniform(0.15, 0.95)

    def kill(done: int, total: int) -> None:
        told.append((done, total))
        if done >= moment * total:
            raise Killed

    with pytest.raises(Killed):
        work(halfway=state, progress=kill)
    before, total = told[-1]
    told.clear()
    result = work(halfway=Halfway(path, "key"), progress=lambda done, total: told.append((done, total)))
    return result, before, told[0][0], total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("criterion", ["greedy", "contribution", "activation", "ptl_vote", "taylor"])
def test_scores(criterion: str, seed: int, model: Any, at: Path) -> None:
    def work(**more: Any) -> Any:
        return score(model, BATCHES, neuron_criterion=criterion, **more)

    straight = work()
    found, before, first, total = killed_and_again(work, at / ".scores.half", seed)
    assert before - first <= total / SHARE + total / DEPTH, "a tenth, and the unit that was under way"
    for name in ("neurons", "layers", "layers_max"):
        assert torch.equal(getattr(found, name), getattr(straight, name))
    assert found.tokens == straight.tokens


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("plan", PLANS)
def test_compensation(plan: str, seed: int, model: Any, at: Path) -> None:
    def work(**more: Any) -> Any:
        return compensate(model, PLANS[plan], BATCHES[:4], held_out=BATCHES[4:6], **more)

    straight = work()
    found, before, first, total = killed_and_again(work, at / ".patch.half", seed)
    assert before - first <= total / SHARE + total / DEPTH
    assert found.fits == straight.fits and found.tokens == straight.tokens
    assert found.tensors.keys() == straight.tensors.keys()
    assert all(torch.equal(t, straight.tensors[n]) for n, t in found.tensors.items())


def test_what_is_not_to_be_taken_up(at: Path) -> None:
    """Another key, a flipped byte, a file cut short, none at all."""
    path = at / ".x.half"
    assert Halfway(path, "key").found() is None
    Halfway(path, "key").reached(5, 10, lambda: {"x": torch.arange(3)})
    assert Halfway(path, "other").found() is None
    found = Halfway(path, "key").found()
    assert found is not None and found["x"].tolist() == [0, 1, 2]
    raw = path.read_bytes()
    for harmed in (raw[:-9], raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:], b"", b"[]\n", b"{}\n"):
        path.write_bytes(harmed)
        assert Halfway(path, "key").found() is None
    Halfway(path, "key").clear()
    assert not path.exists()


def test_quick_work_writes_nothing(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Halfway(at / ".x.half", "key")
    state.reached(10, 10, dict)  # the end: its result is written
    state.reached(1, 100, dict)  # less than a tenth
    monkeypatch.setattr(halfway, "SECONDS", 5.0)
    state.reached(50, 100, dict)
    assert not state.path.exists()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("criterion", ["greedy", "contribution"])
def test_work_of_few_parts_is_divided(criterion: str, seed: int, at: Path) -> None:
    """Two batches, and four layers: a layer or a batch would be far more than a tenth."""
    shallow = tiny_model("llama", hidden_size=16, intermediate_size=16, head_dim=4)
    two = [{k: v.repeat(8, 1) for k, v in batch(i).items()} for i in range(2)]

    def work(**more: Any) -> Any:
        return score(shallow, two, neuron_criterion=criterion, **more)

    straight = work()
    found, before, first, total = killed_and_again(work, at / ".scores.half", seed)
    assert total >= halfway.PARTS
    assert before - first <= total / halfway.PARTS
    for name in ("neurons", "layers", "layers_max"):
        assert torch.equal(getattr(found, name), getattr(straight, name))


def test_batches_are_divided_by_rows_in_their_order() -> None:
    ids = torch.arange(14).view(7, 2)
    some = [{"input_ids": ids, "attention_mask": ids + 1}]
    found = halfway.in_parts(some, 3)
    assert [len(b["input_ids"]) for b in found] == [2, 2, 2, 1]
    assert all(torch.equal(torch.cat([b[k] for b in found]), v) for k, v in some[0].items())
    assert halfway.in_parts(some, 1) == some
    assert len(halfway.in_parts(some, 50)) == 7, "a row is the least"


def test_a_state_never_lies_in_memory_as_a_whole(at: Path) -> None:
    """64 MB on disk: neither saving it nor taking it up adds as much to the process."""
    held = torch.from_file(str(at / "held"), shared=True, size=1 << 24, dtype=torch.float32)
    held.copy_(torch.arange(1 << 24, dtype=torch.float32))
    before, state = anonymous(), Halfway(at / "state", "key")
    state.reached(1, 10, lambda: {"hidden": [held], "next": 1})
    again = Halfway(at / "state", "key").found()
    assert again is not None and again["next"] == 1
    assert anonymous() - before < 48 << 20
    assert torch.equal(again["hidden"][0], held)
    Halfway(at / "state", "key").reached(2, 10, lambda: {"hidden": again["hidden"], "next": 2})
    assert torch.equal(again["hidden"][0], held), "what was taken up outlives the next state"


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon"))
    return int(line.split()[1]) << 10
