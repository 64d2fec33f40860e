"""A mixture's auxiliary loss in training, as its config has it: the model's own, whichever head computes the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder
from tests.tiny_run import rows

from prunetune.data.stream import FileData
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job

ONE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "micro_batch_size": 64,
    "max_length": 64,
    "precision": "fp32",
}
"""One step over one batch, so that transformers' own loss is one mean."""


def first(at: Path, name: str, *, router: bool, **method: Any) -> tuple[float, float]:
    """(loss, norm of its gradient) of the first step."""
    folder = at / ("on" if router else "off")
    sources = (FileData(path=str(at / "rows.jsonl")),)
    job = TuneJob(
        model=folder,
        out=at / name,
        work=at / f"{name}.work",
        method=Cpt(**ONE, **method),
        sources=sources,
        device="cpu",
    )
    found = run_job(job).log[0]
    return found["loss"], found["grad_norm"]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_routers_loss_counts_as_the_config_has_it(family: str, tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl", 64)
    for router in (True, False):
        tiny_folder(
            tmp_path / ("on" if router else "off"), family, output_router_logits=router, router_aux_loss_coef=2.0
        )
    ours = first(tmp_path, "bounded", router=True, loss_head="bounded")
    assert ours == pytest.approx(first(tmp_path, "plain", router=True, loss_head="plain"), rel=1e-4)
    without = first(tmp_path, "without", router=False, loss_head="bounded")
    assert ours[0] > without[0] + 0.5 and ours[1] != pytest.approx(without[1], rel=1e-3)
