"""Local recovery: nothing at zero steps, never a worse layer, one layer in memory, the right targets, and it resumes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import layers_of, tiny_folder
from tests.tune.test_job import make_job, place, same, tensors
from transformers import AutoModelForCausalLM

from prunetune.data.stream import load_stream
from prunetune.errors import TuneError
from prunetune.models.folders import load_tokenizer, model_sha
from prunetune.models.prompt import PromptFormat, encode
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.compensate import compensate
from prunetune.pruning.plan import PrunePlan
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Local
from prunetune.tune.stage import run_job

__all__ = ["place"]
FAST: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "max_length": 64, "steps": 30}


def cut(original: Path, out: Path, depth: int = 4, gone: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Half of the neurons (and some layers) go, with least squares; the layers that stay."""
    ids = torch.randint(3, 100, (24, 24), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids.split(12)]
    kept = tuple(i for i in range(depth) if i not in gone)
    plan = PrunePlan(
        model_sha=model_sha(original), depth=depth, width=48, drop_layers=gone,
        drop_neurons={i: tuple(range(0, 48, 2)) for i in kept},
    )  # fmt: skip
    patch = compensate(original, plan, batches[:1], held_out=batches[1:])
    apply_on_disk(original, plan, out, patch.tensors)
    return kept


@pytest.fixture(scope="module")
def pruned(place: Path) -> Path:
    cut(place / "model", place / "pruned")
    return place / "pruned"


def job(place: Path, out: Path, **values: Any) -> TuneJob:
    method = {k: values.pop(k) for k in list(values) if k in Local.model_fields and k not in ("seed", "tokens")}
    given = {"model": place / "pruned", "teacher": place / "model", "tokens": 800, **values}
    return make_job(place, out, Local(**{**FAST, **method}), **given)


def states(folder: Path, made: TuneJob) -> list[list[torch.Tensor]]:
    """Of each row of the job's data, the hidden states before layer 0, behind layer 0, ... by the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer, found = load_tokenizer(folder), []
    for example in load_stream(made.sources, 0).examples:
        ids = torch.tensor([encode(tokenizer, example, PromptFormat(), 64).input_ids])
        seen: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _m, args, s=seen: s.append(args[0][0])) for layer in layers_of(model)
        ]
        hooks.append(
            layers_of(model)[-1].register_forward_hook(
                lambda _m, _a, out, s=seen: s.append((out if isinstance(out, torch.Tensor) else out[0])[0])
            )
        )
        with torch.no_grad():
            model(input_ids=ids)
        for hook in hooks:
            hook.remove()
        found.append(seen)
        if sum(len(s[0]) for s in found) >= made.tokens:
            break
    return found


def relative(out: list[list[torch.Tensor]], target: list[list[torch.Tensor]], at: int, to: int) -> float:
    """Mean over the tokens of the held-out rows, every fourth, of |out - target|^2 / |target|^2."""
    each = [
        (o[at] - t[to]).square().sum(-1) / t[to].square().sum(-1)
        for o, t in list(zip(out, target, strict=True))[::4]
    ]  # fmt: skip
    return float(torch.cat(each).mean())


@pytest.mark.parametrize("kind", ["original", "current", "both"])
def test_zero_steps_leave_every_bit(place: Path, pruned: Path, tmp_path: Path, kind: str) -> None:
    result = run_job(job(place, tmp_path / "out", steps=0, input=kind))
    assert same(pruned, tmp_path / "out") and result.steps == result.tokens == 0
    assert (tmp_path / "out" / "config.json").read_bytes() == (pruned / "config.json").read_bytes()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_held_out_errors_are_what_they_claim_and_fall(place: Path, pruned: Path, tmp_path: Path) -> None:
    """The finished model as a whole, run by transformers, has the errors behind each layer that the log tells."""
    made = job(place, tmp_path / "out")
    result = run_job(made)
    theirs, before, after = (states(folder, made) for folder in (place / "model", pruned, tmp_path / "out"))
    assert [e["layer"] for e in result.log] == [0, 1, 2, 3]
    assert result.log[0]["before"] == pytest.approx(relative(before, theirs, 1, 1), rel=1e-3)
    for i, entry in enumerate(result.log, start=1):
        assert entry["after"] == pytest.approx(relative(after, theirs, i, i), rel=1e-3)
        assert entry["after"] < 0.9 * entry["before"]
    assert relative(after, theirs, 4, 4) < 0.8 * relative(before, theirs, 4, 4)
    assert result.steps == 120 and result.data_tokens == sum(len(s[0]) for s in theirs) and result.tokens > 0


@pytest.mark.parametrize("kind", ["original", "both"])
def test_a_rate_that_ruins_every_layer_changes_nothing(place: Path, pruned: Path, tmp_path: Path, kind: str) -> None:
    result = run_job(job(place, tmp_path / "out", learning_rate=1e3, warmup=0.0, input=kind, max_grad_norm=0.0))
    assert all(e["after"] == e["before"] for e in result.log) and same(pruned, tmp_path / "out")


def test_a_kept_layer_stands_for_those_behind_it_that_went(place: Path, tmp_path: Path) -> None:
    kept = cut(place / "model", tmp_path / "short", gone=(0, 2))
    assert kept == (1, 3)
    made = job(place, tmp_path / "out", model=tmp_path / "short", origins=kept, input="original")
    result = run_job(made)
    theirs, first = (states(folder, made) for folder in (place / "model", tmp_path / "short"))
    assert result.log[0]["before"] == pytest.approx(
        relative(first, theirs, 1, 3), rel=1e-3
    )  # behind layer 2, which went
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    found = []
    for row in theirs:  # the last layer alone, on the original's input of layer 3
        seen: list[torch.Tensor] = []
        hooks = [
            layers_of(model)[1].register_forward_pre_hook(lambda _m, args, r=row: (r[3][None], *args[1:])),
            layers_of(model)[1].register_forward_hook(
                lambda _m, _a, out, s=seen: s.append((out if isinstance(out, torch.Tensor) else out[0])[0])
            ),
        ]
        with torch.no_grad():
            model(input_ids=torch.ones(1, len(row[0]), dtype=torch.long))
        for hook in hooks:
            hook.remove()
        found.append(seen)
    assert result.log[1]["after"] == pytest.approx(relative(found, theirs, 0, 4), rel=1e-3)
    with pytest.raises(TuneError, match="which layers of the original are left"):
        run_job(job(place, tmp_path / "a", model=tmp_path / "short"))
    with pytest.raises(TuneError, match="which layers of the original are left"):
        run_job(job(place, tmp_path / "a", model=tmp_path / "short", origins=(3, 1)))


def test_a_killed_job_goes_on_behind_the_last_block(place: Path, pruned: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        assert total == 120
        if done == 75:
            raise KeyboardInterrupt

    often = job(place, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_job(often, stop)
    seen.clear()
    again = run_job(often, lambda done, total: seen.append(done))
    straight = run_job(job(place, tmp_path / "straight"))
    assert same(tmp_path / "straight", often.out) and again.log == straight.log
    assert 61 in seen and 59 not in seen and seen[-1] == 120


def alive() -> int:
    """Bytes of all tensors that are alive, gradients too."""
    found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def test_one_layer_and_its_optimiser_are_in_memory(tmp_path: Path, place: Path) -> None:
    """Tensors that are alive in the midst of training are as many with twelve layers as with four: a layer's."""
    held: dict[int, int] = {}
    for depth in (4, 12):
        folder, pruned = tiny_folder(tmp_path / f"model-{depth}", num_hidden_layers=depth), tmp_path / f"pruned-{depth}"
        cut(folder, pruned, depth)
        before, found = alive(), [0]
        short = job(place, tmp_path / f"out-{depth}", model=pruned, teacher=folder, steps=6, tokens=300)
        run_job(short, lambda done, total, found=found: found.append(alive() if done % 6 == 3 else 0))
        held[depth] = max(found) - before
    layer = sum(t.nbytes for n, t in tensors(tmp_path / "pruned-4").items() if ".layers.1." in n)
    streams = 3 * 340 * 32 * 4  # hidden states: the original's before and behind the layer, the cut model's
    assert held[12] == pytest.approx(held[4], rel=0.02)
    assert 4 * layer < held[12] < 7 * layer + streams  # weights, two moments, the best so far; gradients, rounded ones


@pytest.mark.parametrize(
    ("values", "match"),
    [({"teacher": None}, "needs the original"), ({"tokens": 1}, "rows to train on")],
)  # fmt: skip
def test_what_cannot_be_is_told(place: Path, pruned: Path, tmp_path: Path, values: dict[str, Any], match: str) -> None:
    with pytest.raises(TuneError, match=match):
        run_job(job(place, tmp_path / "out", **values))


def test_another_model_is_not_its_original(place: Path, pruned: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", hidden_size=64)
    with pytest.raises(TuneError, match="another hidden_size"):
        run_job(job(place, tmp_path / "out", teacher=other))
    for bad in ({"lora": {}}, {"average": 0.5}, {"optimizer": "sgd"}, {"precision": "bf16"}):
        with pytest.raises(ValueError, match="local"):
            Local(**bad)
