"""A peer's check: what a cut wrote is read by plain transformers in a process where prunetune cannot be imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.experts.test_cut import plan_of
from tests.pruning.test_apply import make_plan
from tests.tiny import MIXTURES, tiny_model
from tests.wrapped import wrapped_folder

from prunetune.models.families import FAMILIES
from prunetune.models.families.wrappers import WRAPPERS
from prunetune.models.folders import load_model, model_sha
from prunetune.pruning.apply import apply_on_disk
from prunetune.publish.child import ISOLATED, child

READ = """
out = {}
for name, path in args["models"].items():
    args["model"] = path
    model = load()
    ids = torch.tensor([args["ids"]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    out[name] = [type(model).__name__, made[0].tolist()]
done(out)
"""
IDS = [5, 40, 7, 77]


def here(folder: Path) -> list[int]:
    ids = torch.tensor([IDS])
    made: Any = load_model(folder).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    return made[0].tolist()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{name: [class there, tokens there, tokens here]} of all families and wrappers, read in one process."""
    at, folders = tmp_path_factory.mktemp("models"), dict[str, Path]()
    for name in (*FAMILIES, *WRAPPERS):
        source, folders[name] = at / name, at / f"{name}-cut"
        if name in WRAPPERS:
            wrapped_folder(source, name)
        else:
            tiny_model(name).save_pretrained(source)
        sha = model_sha(source)
        plan = plan_of("all", sha) if name in MIXTURES else make_plan(sha, drop_layers=(2,))
        apply_on_disk(source, plan, folders[name])
    there = child(ISOLATED + READ, models={n: str(p) for n, p in folders.items()}, ids=IDS)
    return {name: [*there[name], here(folder)] for name, folder in folders.items()}


@pytest.mark.parametrize("name", [*FAMILIES, *WRAPPERS])
def test_plain_transformers_reads_it_without_prunetune(name: str, told: dict[str, Any]) -> None:
    kind, there, here = told[name]
    assert there == here and len(there) == len(IDS) + 6
    assert kind.endswith("ForConditionalGeneration" if name in WRAPPERS else "ForCausalLM")
