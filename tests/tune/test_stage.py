"""What every method shares: adapters merged into plain weights, replayed text, the memory plan, own randomness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_config, tiny_model
from tests.tune.test_job import SMALL, make_job, place, same, tensors
from transformers import AutoModelForCausalLM

from prunetune.data.stream import Example, FileData, load_stream
from prunetune.errors import MissingExtra, TuneError
from prunetune.tune.methods import Cpt, Lora, Replay
from prunetune.tune.stage import adapted, merged, run_job, with_replay
from prunetune.tune.training.machine import compute_type, kept_memory, pick_memory_plan, product_flops

__all__ = ["place"]
CPU = torch.device("cpu")


def test_lora_is_merged_into_a_plain_model(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out", Cpt(**SMALL, lora=Lora(rank=4, alpha=8)))
    result = run_job(job)
    assert result.log[-1]["loss"] < result.log[0]["loss"]
    before, after = tensors(job.model), tensors(job.out)
    assert {k: (t.shape, t.dtype) for k, t in before.items()} == {k: (t.shape, t.dtype) for k, t in after.items()}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all("_proj" in k for k in changed), "only the adapted linear layers may change"
    AutoModelForCausalLM.from_pretrained(job.out)


def test_merged_weights_give_the_adapters_logits() -> None:
    model = adapted(tiny_model(), Lora(rank=4), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05)
    ids = torch.randint(4, 100, (2, 12))
    with torch.no_grad():
        want = model(input_ids=ids).logits
        plain = merged(model)
        torch.testing.assert_close(plain(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)
    assert plain.state_dict().keys() == tiny_model().state_dict().keys()


def test_lora_resumes(place: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    often = make_job(place, tmp_path / "out", Cpt(**SMALL, lora=Lora(rank=4), checkpoint_minutes=1e-9))
    with pytest.raises(KeyboardInterrupt):
        run_job(often, stop)
    run_job(often)
    run_job(make_job(place, tmp_path / "straight", Cpt(**SMALL, lora=Lora(rank=4))))
    assert same(tmp_path / "straight", often.out)


def test_replay_takes_its_share_and_its_own_part(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("".join(f"General text number {i}.\n" for i in range(60)))
    replay = Replay(share=0.25, sources=(FileData(path=str(text)),))
    first = make_job(place, tmp_path / "a", Cpt(**SMALL, replay=replay), start=0, end=48)
    second = make_job(place, tmp_path / "b", Cpt(**SMALL, replay=replay), start=48, end=96)
    own = [Example("q", str(i), "own") for i in range(48)]
    mixed, later = with_replay(own, first), with_replay(own, second)
    assert len(mixed) == 64 and [e for e in mixed if e.source == "own"] == own
    general = [e for e in (*mixed, *later) if e.source != "own"]
    assert len(general) == 32 == len({e.answer for e in general}), "no general text twice"
    assert sum(e.source == "own" for e in mixed[:32]) == 24
    result = run_job(first)
    assert result.samples == 48 and result.steps == 8


def test_replay_begins_again_after_its_last_text(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("".join(f"General text number {i}.\n" for i in range(20)))
    replay = Replay(share=0.25, sources=(FileData(path=str(text)),))
    job = make_job(place, tmp_path / "a", Cpt(**SMALL, replay=replay), start=48, end=96)
    own = [Example("q", str(i), "own") for i in range(48)]
    general = [e.answer for e in with_replay(own, job) if e.source != "own"]
    assert len(general) == 16 == len(set(general)), "texts 16 to 19 and 0 to 11"
    assert general == [
        *(whole := [e.answer for e in load_stream(replay.sources, job.data_seed).examples])[16:],
        *whole[:12],
    ]
    assert "the 20 replayed texts were gone through 1.6 times" in run_job(job).notes
    assert not [
        note for note in run_job(make_job(place, tmp_path / "b", job.method, end=48)).notes if "replayed" in note
    ]


def test_memory_plan() -> None:
    config = tiny_config()
    plan = {"config": config, "params": 10_000, "longest": 32, "compute": torch.float32, "device": CPU, "share": 32}
    assert pick_memory_plan(Cpt(), **plan) == (32, False)
    assert pick_memory_plan(Cpt(micro_batch_size=2, gradient_checkpointing=True), **plan) == (2, True)
    assert pick_memory_plan(Cpt(), **{**plan, "longest": 1024})[0] == 4  # 4096 tokens at a time on CPU
    wide = tiny_config(hidden_size=10**5, intermediate_size=4 * 10**5, num_hidden_layers=100)
    assert pick_memory_plan(Cpt(), **{**plan, "config": wide, "longest": 4096})[1]
    assert pick_memory_plan(Cpt(), **{**plan, "params": 10**12}) == (1, True)


def test_compute_types_and_yardstick() -> None:
    assert compute_type("fp32", CPU) == torch.float32 and compute_type("bf16", CPU) == torch.bfloat16
    assert product_flops(CPU, torch.float32, size=128) > 1e6
    with kept_memory() as works:
        assert works in (True, False)


def test_optimisers(place: Path, tmp_path: Path) -> None:
    with pytest.raises((TuneError, MissingExtra), match="GPU"):
        run_job(make_job(place, tmp_path / "a", Cpt(**SMALL, optimizer="adamw_8bit")))
    with pytest.raises(ValueError, match="optimizer"):
        Cpt(optimizer="adamwe")
    run_job(make_job(place, tmp_path / "b", Cpt(**SMALL, optimizer="sgd"), end=16))
    assert not same(place / "model", tmp_path / "b")
