"""What a cut costs on a pre-trained model before any training: a method, a size and a seed a line of records.jsonl.

    .venv/bin/python studies/14-axes/after_the_cut.py MODEL --name smollm2 [--only METHOD ...] [--sizes 0.8 0.7] [--seeds 0 1]

Needs $PRUNETUNE_DATA (gsm8k/, wikitext2/). Calibration: 50,000 tokens of GSM8K's training text, drawn by the seed. Measure: the loss of `n`
answers of its test questions after their prompt (the same for all), in nats a byte, as text is longer in a smaller vocabulary. A cell that has
a line is skipped, so a killed call goes on. `studies/14-axes/cuts.py` makes the page.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunetune.common.files import once
from prunetune.data.example import Example
from prunetune.data.sources import FileData
from prunetune.data.stream import load_stream
from prunetune.errors import OutOfReach
from prunetune.models.axes import shape_of
from prunetune.models.batches import mask_of, padded
from prunetune.models.cost import cost_of
from prunetune.models.families import family_of
from prunetune.models.folders import config_values, load_model, load_tokenizer, model_sha, resolve_model
from prunetune.models.prompt import PromptFormat, encode
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.compensate import calibration_and_held_out, compensate
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Scores, make_batches, score
from prunetune.pruning.vocabulary.folder import cut_vocabulary, fit
from prunetune.schedule.search import frontier, search

TOKENS = 50_000
PROBE_ROWS = 48
MOST_PROBES = 7
GRAIN = 8
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lib"))

from hidden import kept_for, narrowed, params_a_channel  # noqa: E402
from records import Records  # noqa: E402

RECORDS = Records(HERE / "records.jsonl")


@dataclass(frozen=True)
class Method:
    """How a cut is chosen.

    Attributes:
        criterion, reduce: Of the neurons.
        layers_by: Of the layers.
        squares: Least squares after the cut.
        bias: What goes is replaced by its mean (FLAP).
        axes: What may go, neurons first; of several, besides `heads`, the search chooses.
        vocabulary: The vocabulary is cut first, to the calibration task's training text and WikiText's.
        search: The shape is found by `schedule/search.py`.
        hidden: Channels of the residual stream go, after one rotation for all layers (`hidden.py`).
        peer: The package of that name cuts (`pip install --no-deps torch-pruning`).
    """

    criterion: str = "greedy"
    reduce: str = "mean"
    layers_by: str = "l2"
    squares: bool = False
    bias: bool = False
    axes: tuple[str, ...] = ("neurons",)
    vocabulary: bool = False
    search: bool = False
    hidden: bool = False
    peer: bool = False


METHODS = {
    "greedy + least squares": Method(squares=True),
    "contribution + least squares": Method("contribution", squares=True),
    "contribution (mean)": Method("contribution"),
    "contribution (max)": Method("contribution", "max"),
    "activation (max)": Method("activation"),
    "taylor": Method("taylor"),
    "wanda": Method("wanda"),
    "magnitude": Method("magnitude"),
    "random": Method("random"),
    "fluctuation + bias": Method("contribution", bias=True),
    "torch-pruning": Method("magnitude", peer=True),
    "layers by cosine": Method("magnitude", layers_by="cosine", axes=("layers",)),
    "neurons + heads": Method(squares=True, axes=("neurons", "heads")),
    "neurons + vocabulary": Method(squares=True, vocabulary=True),
    "neurons + heads + vocabulary": Method(squares=True, axes=("neurons", "heads"), vocabulary=True),
    "hidden": Method(hidden=True),
    "search": Method(squares=True, axes=("neurons", "layers", "heads"), vocabulary=True, search=True),
}


def texts(name: str, seed: int = 0) -> list[Example]:
    """The samples of a data file, shuffled by a seed."""
    return list(load_stream([FileData(path=str(Path(os.environ["PRUNETUNE_DATA"]) / name))], seed).examples)


@dataclass
class Source:
    """A model to cut, with one draw of calibration text."""

    folder: Path
    seed: int
    scores: dict[tuple[str, ...], Scores] = field(default_factory=dict)

    @cached_property
    def model(self) -> PreTrainedModel:
        """In the type that it is stored in."""
        model: PreTrainedModel = load_model(self.folder, torch.bfloat16).eval()
        return model

    @cached_property
    def values(self) -> dict[str, Any]:
        """Its config, with defaults filled in."""
        return config_values(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(self.folder)

    @cached_property
    def sequences(self) -> tuple[list[list[int]], list[list[int]]]:
        """50,000 tokens of calibration, and sequences after them on which a search compares its probes."""
        rows: list[list[int]] = []
        examples, total = iter(texts("gsm8k/train.jsonl", self.seed)), 0
        while total < TOKENS:
            rows.append(encode(self.tokenizer, next(examples), PromptFormat(), 512).input_ids)
            total += len(rows[-1])
        probe = [encode(self.tokenizer, next(examples), PromptFormat(), 512).input_ids for _ in range(PROBE_ROWS)]
        return rows, probe

    def scored(self, method: Method) -> Scores:
        """Neurons, layers and (where asked for) heads, in one pass over the calibration."""
        more = tuple(name for name in method.axes if name not in ("neurons", "layers"))
        key = (method.criterion, method.reduce, method.layers_by, *more)
        if key not in self.scores:
            batches = make_batches(self.sequences[0], 0, 4096)
            ways: Any = {"reduce": method.reduce, "layers_by": method.layers_by, "more": more, "seed": self.seed}
            found = score(self.model, batches, neuron_criterion=method.criterion, **ways)
            self.scores[key] = found
        return self.scores[key]

    def plan(self, method: Method, shape: Mapping[str, int]) -> PrunePlan:
        """What goes for a shape."""
        scores, units = self.scored(method), shape_of(self.values)
        gone = {name: units[name] - count for name, count in shape.items() if count != units[name]}
        others = {name: count for name, count in gone.items() if name not in ("neurons", "layers")}
        neurons = fluctuation(self.model, self.sequences[0]) if method.bias else scores.neurons
        return make_plan(
            neurons.tolist(),
            scores.layers.tolist(),
            scores.model_sha,
            n_neurons=gone.get("neurons", 0),
            n_layers=gone.get("layers", 0),
            others=scores.others(others) if others else None,
        )

    def cut(self, method: Method, shape: Mapping[str, int]) -> PreTrainedModel:
        """The model of that shape."""
        if method.peer:
            return by_torch_pruning(self.model, shape["neurons"])
        plan = self.plan(method, shape)
        if method.squares and shape != shape_of(self.values):
            fitted, held_out = (make_batches(s, 0, 4096) for s in calibration_and_held_out(self.sequences[0]))
            patch = compensate(self.model, plan, fitted, held_out=held_out)
            return apply_in_memory(self.model, plan, patch.tensors)
        small = apply_in_memory(self.model, plan)
        return with_bias(small, self.model, plan, self.sequences[0]) if method.bias else small


def inputs_of_down(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance over tokens of every neuron's activation, a layer, in fp32."""
    family = family_of(model.config)
    layers: Any = model.get_submodule(family.layers)
    width = shape_of(model.config.to_dict())["neurons"]
    sums = [torch.zeros(3, width, dtype=torch.float64) for _ in layers]
    mask = torch.ones(0)

    def hook(i: int) -> Callable[..., None]:
        def see(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            real = args[0][mask.bool()].double()
            sums[i] += torch.stack([torch.ones(width) * len(real), real.sum(0), real.square().sum(0)])

        return see

    handles = [layer.mlp.down_proj.register_forward_pre_hook(hook(i)) for i, layer in enumerate(layers)]
    for batch in make_batches(sequences, 0, 4096):
        mask = batch["attention_mask"]
        with torch.inference_mode():
            model.base_model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return [(s / n, q / n - (s / n) ** 2) for n, s, q in sums]


def fluctuation(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Variance of the activation times the squared norm of its column: FLAP's score (arXiv 2312.11983)."""
    layers: Any = model.get_submodule(family_of(model.config).layers)
    found = inputs_of_down(model, sequences)
    return torch.stack(
        [
            variance * layer.mlp.down_proj.weight.double().square().sum(0)
            for (_, variance), layer in zip(found, layers, strict=True)
        ]
    ).float()


def with_bias(small: PreTrainedModel, model: PreTrainedModel, plan: PrunePlan, sequences: Any) -> PreTrainedModel:
    """The mean of what went, as a bias of each readout (a model for this table only: the config has no such key)."""
    layers: Any = model.get_submodule(family_of(model.config).layers)
    cut: Any = small.get_submodule(family_of(small.config).layers)
    for i, (mean, _) in enumerate(inputs_of_down(model, sequences)):
        gone, new = torch.tensor(plan.drop_neurons[i]), cut[i].mlp.down_proj
        bias = layers[i].mlp.down_proj.weight[:, gone].double() @ mean[gone]
        new.bias = torch.nn.Parameter(bias.to(new.weight.dtype), requires_grad=False)
    return small


def by_torch_pruning(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """The FFN cut by torch-pruning's group magnitude, its default, to a width; no data are asked for."""
    import torch_pruning as peer

    small = copy.deepcopy(model).float()
    small.config.use_cache = False
    layers: Any = small.get_submodule(family_of(small.config).layers)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "lm_head"}
    kept = [module for name, module in small.named_modules() if name.rpartition(".")[2] in names]
    share = {layer.mlp.gate_proj: 1 - width / layer.mlp.gate_proj.out_features for layer in layers}
    pruner = peer.pruner.BasePruner(
        small,
        example_inputs=torch.arange(16)[None],
        importance=peer.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.0,
        pruning_ratio_dict=share,
        ignored_layers=kept,
        forward_fn=lambda m, ids: m(ids).logits,
    )
    pruner.step()
    back: Any = small
    found: PreTrainedModel = back.to(model.dtype)
    return found


@torch.inference_mode()
def answer_losses(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Summed loss (nats) of each row from its answer's first token on; logits in fp32."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found = [0.0] * len(rows)
    for begin in range(0, len(order), 8):
        part = order[begin : begin + 8]
        ids, mask = padded([rows[i][0] for i in part], 0), mask_of([rows[i][0] for i in part])
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for place, i in enumerate(part):
            row, start = rows[i]
            logits = model.get_output_embeddings()(hidden[place, start - 1 : len(row) - 1]).float()
            found[i] = float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[start:]), reduction="sum"))
    return found


def shapes_of(method: Method, source: Source, most: int) -> list[dict[str, int]]:
    """The shapes of at most so many parameters that a method may choose from."""
    units = shape_of(source.values)
    known = dict(units)
    cost = {"layers": 1, "heads": 1}
    least = {"layers": known["layers"] // 4, "heads": max(1, known["heads"] - 1)}
    if method.search:
        levels: dict[str, Sequence[int]] = {
            name: range(known[name], least[name] - 1, -cost[name]) for name in method.axes if name != "neurons"
        }
    elif "heads" in method.axes:
        levels = {"heads": [max(1, known["heads"] - 1)]}
    elif "layers" in method.axes:
        fitting = [
            n for n in range(known["layers"], 0, -1) if cost_of(source.values, shape={"layers": n}).params <= most
        ]
        return [{**known, "layers": fitting[0]}] if fitting else []
    else:
        levels = {}

    def fits(shape: Mapping[str, int]) -> bool:
        return cost_of(source.values, shape=shape).params <= most

    return frontier(known, levels, fits, GRAIN, GRAIN)


def measured(
    name: str, method: Method, source: Source, size: float, original: int, asked: list[Example]
) -> dict[str, Any]:
    """One cell: the cut and its loss on every answer."""
    begun = time.monotonic()
    if method.hidden:
        kept = kept_for(source.model.config, round(size * original))
        losses = answer_losses(narrowed(source.model, source.sequences[0], kept), encoded(source, asked))
        return {
            "shape": {"channels": kept},
            "params": kept * params_a_channel(source.model.config),
            "seconds": round(time.monotonic() - begun, 1),
            "losses": [round(x, 4) for x in losses],
        }
    shapes = shapes_of(method, source, round(size * original))
    if not shapes or (method.search is False and "heads" in method.axes and shape_of(source.values)["heads"] == 1):
        return {"out_of_reach": True}
    probes: list[dict[str, Any]] = []
    rows = [(s, 1) for s in source.sequences[1]]

    def lost(shape: Mapping[str, int]) -> float:
        total = sum(answer_losses(source.cut(method, shape), rows)) / sum(len(r) - 1 for r, _ in rows)
        probes.append({"shape": dict(shape), "loss": round(total, 5)})
        return total

    units = shape_of(source.values)
    before = sum(answer_losses(source.model, rows)) / sum(len(r) - 1 for r, _ in rows) if method.search else 0.0
    shape = search(shapes, units, before, lost, MOST_PROBES).shape if method.search else shapes[0]
    small = source.cut(method, shape)
    losses = answer_losses(small, encoded(source, asked))
    return {
        "shape": {axis: n for axis, n in shape.items() if n != units[axis]},
        "vocab_size": small.config.get_text_config().vocab_size,
        "params": cost_of(source.values, shape=shape).params,
        "probes": probes,
        "seconds": round(time.monotonic() - begun, 1),
        "losses": [round(x, 4) for x in losses],
    }


def encoded(source: Source, asked: Sequence[Example]) -> list[tuple[list[int], int]]:
    """The token ids of each example, and where its answer begins."""
    rows = [encode(source.tokenizer, e, PromptFormat(), None) for e in asked]
    return [(r.input_ids, r.prompt_length) for r in rows]


def main() -> None:
    """All cells asked for, of one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--sizes", nargs="*", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--work", type=Path, default=Path("runs/14-axes"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    folder = resolve_model(args.model)
    original = cost_of(config_values(folder)).params
    asked = texts("gsm8k/test.jsonl")[: args.n]

    def name_of(method: str, size: float, seed: int) -> str:
        return f"{args.name}/{method}/{size:g}/s{seed}"

    def keep(method: str, size: float, seed: int, found: dict[str, Any]) -> None:
        head = {"model": args.name, "method": method, "size": size, "seed": seed, "n": args.n, "sha": model_sha(folder)}
        RECORDS.put(name_of(method, size, seed), {**head, **found})
        total = sum(found.get("losses", [])) / sum(len(e.answer.encode()) for e in asked)
        print(args.name, method, size, seed, f"{total:.4f}", found.get("shape"), found.get("seconds"), flush=True)

    if RECORDS.get(name_of("original", 1.0, 0)) is None:
        source = Source(folder, 0)
        sizes = [len(e.answer.encode()) for e in asked]
        tokens = [len(ids) - start for ids, start in encoded(source, asked)]
        keep(
            "original",
            1.0,
            0,
            {
                "losses": answer_losses(source.model, encoded(source, asked)),
                "bytes": sizes,
                "tokens": tokens,
                "params": original,
            },
        )
    for seed in args.seeds:
        plain = Source(folder, seed)
        for name in args.only:
            method, source = METHODS[name], plain
            if method.vocabulary:
                args.work.mkdir(parents=True, exist_ok=True)
                fitted = fit(folder, texts("gsm8k/train.jsonl"), texts("wikitext2/valid.txt"))
                cut = once(
                    args.work / f"{args.name}-vocabulary",
                    fitted.sha,
                    partial(cut_vocabulary, folder, fitted),
                )
                source = Source(cut, seed)
            for size in args.sizes:
                if RECORDS.get(name_of(name, size, seed)) is not None:
                    continue
                try:
                    found = measured(name, method, source, size, original, asked)
                except OutOfReach:
                    found = {"out_of_reach": True}
                keep(name, size, seed, found)


if __name__ == "__main__":
    main()
