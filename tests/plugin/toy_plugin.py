"""A package of somebody else, with an entry of each kind: criteria, family, axis, task, verifier, source, method, callback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    TrainerCallback,
)

from prunetune.models.axes.heads import HEADS, attention
from prunetune.models.families import Cut, Family
from prunetune.pruning.criteria import Blockwise, Criterion
from prunetune.tasks.questions import asked
from prunetune.tasks.registry import Task, TaskConfig, Verdict
from prunetune.tune.methods import Cpt
from prunetune.tune.training.trainer import fit
from prunetune.tune.training.trainers import Runner

LAST = Criterion(
    "weights",
    lambda stat, weights, layer, seed: -torch.arange(weights.down.shape[1]).float(),
    blocks=Blockwise(finish=lambda stat, blocks, layer, seed: -torch.arange(blocks.units).float()),
)
MOMENT = Criterion("moments", lambda stat, weights, layer, seed: stat.diagonal().float())

GROUPS = replace(  # key/value groups by another name: of two query heads each, as the toy has them
    HEADS, name="toy_groups", beside=(), slices=lambda family, shape: attention(family, queries=2, keys=1)
)


def opposite(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A layer is the more redundant the more it changes."""
    return -(after - before).norm(dim=-1)


class Hears(TrainerCallback):
    """Writes a line a step into the file that the environment names."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with Path(os.environ["TOY_HEARD"]).open("a") as file:
            file.write(f"{state.global_step}\n")


def always(output: str, reference: str) -> Verdict:
    return Verdict(True, output, "")


def sums(config: TaskConfig) -> Task:
    return asked(config.model_copy(update={"verifier": "toy-always"}), "test.jsonl", ("", None))


class ToyRows(BaseModel):
    """Sums."""

    type: Literal["toy-rows"] = "toy-rows"
    n: int = 60

    def examples(self) -> Iterator[dict[str, str]]:
        return ({"question": f"{i}+1", "answer": f"{i}+1={i + 1}"} for i in range(self.n))


class Still(Cpt):
    """Continual pre-training by another name."""

    type: Literal["toy-cpt"] = "toy-cpt"


STILL = Runner(fit)


class ToyConfig(LlamaConfig):
    model_type = "toy"


class ToyMLP(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class ToyModel(LlamaModel):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = ToyMLP(config)


class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyModel(config)


AutoConfig.register("toy", ToyConfig, exist_ok=True)
AutoModel.register(ToyConfig, ToyModel, exist_ok=True)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM, exist_ok=True)
TOY = Family(
    "toy",
    cuts=(Cut("mlp.w1.weight", 0), Cut("mlp.w3.weight", 0), Cut("mlp.w2.weight", 1)),
    full_every=0,
    gate="mlp.w1",
    up="mlp.w3",
    down="mlp.w2",
)
