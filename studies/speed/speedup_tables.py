"""README.md and figure of `speedups.py`'s records alone: measured speed-up against promised; nothing is measured.

    python studies/speed/speedup_tables.py studies/10-cut-against-cost

Promised: the whole model's FLOPs (prefill) or bytes read a step (decode) over the cut one's. Measured: the whole model's
time over the cut one's, both of the same repetition. Arrived: the share of the promised saving of time that was measured,
(1 - 1 / measured) / (1 - 1 / promised).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from records import Records
from tables import table

mpl.rcParams["svg.hashsalt"] = "prunetune"  # the same records, the same bytes
PHASES = {"prefill": ("prefill_flops", "prefill_ms"), "decode": ("decode_bytes", "decode_ms_per_token")}
BOUND = 0.9


@dataclass(frozen=True)
class Device:
    """All repetitions on one device: the records `NAME/0`, `NAME/1` and so on."""

    name: str
    repetitions: list[dict[str, Any]]

    @staticmethod
    def read(study: Path, name: str) -> Device:
        """From the study's records."""
        found = {k: v for k, v in Records(study / "records.jsonl").all().items() if k.rpartition("/")[0] == name}
        return Device(name, [found[k] for k in sorted(found, key=lambda k: int(k.rpartition("/")[2]))])

    @property
    def shapes(self) -> dict[str, dict[str, Any]]:
        """Name -> figures of the first repetition, the whole model first."""
        found: dict[str, dict[str, Any]] = self.repetitions[0]["shapes"]
        return found

    @property
    def whole(self) -> str:
        """The uncut shape."""
        return next(iter(self.shapes))

    def promised(self, phase: str, name: str) -> float:
        """What the costs say."""
        cost = PHASES[phase][0]
        return float(self.shapes[self.whole][cost] / self.shapes[name][cost])

    def measured(self, phase: str, name: str) -> list[float]:
        """What the clock says, once a repetition."""
        key = PHASES[phase][1]
        return [r["shapes"][self.whole][key] / r["shapes"][name][key] for r in self.repetitions]

    def arrived(self, phase: str, name: str) -> list[float]:
        """Share of the promised saving, once a repetition."""
        promised = self.promised(phase, name)
        return [(1 - 1 / m) / (1 - 1 / promised) for m in self.measured(phase, name)]

    def cut(self, which: Callable[[bool, bool], bool]) -> list[str]:
        """Shapes by whether they are narrower and whether they are shallower."""
        whole = self.shapes[self.whole]
        return [n for n, s in self.shapes.items() if which(s["width"] < whole["width"], s["depth"] < whole["depth"])]


GROUPS: dict[str, Callable[[bool, bool], bool]] = {
    "width alone": lambda narrow, shallow: narrow and not shallow,
    "depth alone": lambda narrow, shallow: shallow and not narrow,
    "both": lambda narrow, shallow: narrow and shallow,
}


def verdict(values: Sequence[float]) -> str:
    """By the rule of the page."""
    if min(values) >= BOUND:
        return "held"
    return "did not hold" if max(values) < BOUND else "undecided"


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Median [smallest, largest]."""
    return f"{show(median(values))} [{show(min(values))}, {show(max(values))}]"


def times(x: float) -> str:
    """1.23."""
    return f"{x:.2f}"


def percent(x: float) -> str:
    """92 %."""
    return f"{100 * x:.0f} %"


def section(device: Device) -> str:
    """One device."""
    first = device.repetitions[0]
    setting, whole = first["setting"], device.shapes[device.whole]
    loads = ", ".join(f"{r['load_before']:g}" for r in device.repetitions)
    groups = [
        [phase, group, *_claim(device, phase, names)]
        for phase in PHASES
        for group, which in GROUPS.items()
        if (names := device.cut(which))
    ]
    rows = []
    for name, shape in device.shapes.items():
        row = [
            f"{shape['width']} ({percent(shape['width'] / whole['width'])})",
            f"{shape['depth']} ({percent(shape['depth'] / whole['depth'])})",
        ]
        row.append(percent(shape["params"] / whole["params"]))
        for phase, (_, key) in PHASES.items():
            ms = spread([r["shapes"][name][key] for r in device.repetitions], lambda x: f"{x:.3g}")
            cut = name != device.whole
            row += [
                ms,
                times(device.promised(phase, name)),
                spread(device.measured(phase, name), times) if cut else "1",
            ]
            row.append(spread(device.arrived(phase, name), percent) if cut else "–")
        rows.append(row)
    return "\n\n".join([
        f"## {setting['device']}",
        f"{len(device.repetitions)} repetitions, each the median of {setting['timings']} timings a shape taken in turns; batch "
        f"{setting['batch']}, {setting['prompt']} prompt tokens, {setting['new']} new ones, bf16, random weights (seed 0), prompts of seeds "
        f"0 to {len(device.repetitions) - 1}; torch {first['torch']}, transformers {first['transformers']}; "
        f"load of the machine before each: {loads}. Whole model: {whole['params']:,} parameters.",
        table(["phase", "cut", "share of the promised saving that arrived", f"at least {percent(BOUND)}"], groups),
        table(["width", "depth", "parameters",
               "prefill, ms", "FLOPs promise ×", "measured ×", "arrived",
               "decode, ms a token", "bytes promise ×", "measured ×", "arrived"], rows),
    ])  # fmt: skip


def _claim(device: Device, phase: str, names: list[str]) -> tuple[str, str]:
    by_shape = [device.arrived(phase, n) for n in names]
    values = [fmean(v) for v in zip(*by_shape, strict=True)]
    return spread(values, percent), f"**{verdict(values)}**"


def readme(folder: Path, devices: list[Device]) -> str:
    """The page."""
    study = f"studies/{folder.name}"
    parts = [
        "# Cut against cost: does the clock keep what the costs promise?",
        "Measured speed-up over what the FLOPs (prefill) and the bytes read a step (decode) promise, for a Llama of SmolLM2-135M's shape cut "
        "to several widths and depths.",
        f"Made by `{study}/run`; `{study}/tables` makes this page from `records.jsonl` alone.",
        "Promised: the whole model's FLOPs, or bytes of weights and cache read in a decode step half-way, over the cut one's "
        "(`prunetune.models.cost`). Measured: the whole model's time over the cut one's in the same repetition (`prunetune.evaluation.latency`). Arrived: "
        "(1 − 1/measured) / (1 − 1/promised), the share of the promised saving of time. Everywhere: median over repetitions "
        f"[smallest, largest]. Rule: “at least {percent(BOUND)} arrives”, on the mean over a group's shapes, held if the smallest "
        "repetition reaches it, did not hold if the largest does not, else it is undecided.",
        "![measured against promised](figures/speedup.svg)" if devices else "Nothing measured yet.",
        *(section(d) for d in devices),
    ]
    return "\n\n".join(parts) + "\n"


def draw(devices: list[Device], out: Path) -> None:
    """Measured against promised, a row a device; a line joins the widths of a depth."""
    figure = Figure(figsize=(8.4, 3.8 * len(devices)), layout="constrained")
    panels = figure.subplots(len(devices), 2, squeeze=False)
    for device, row in zip(devices, panels, strict=True):
        for (phase, (cost, _)), panel in zip(PHASES.items(), row, strict=True):
            depths = sorted({s["depth"] for s in device.shapes.values()}, reverse=True)
            for i, depth in enumerate(depths):
                names = [n for n, s in device.shapes.items() if s["depth"] == depth]
                x = [device.promised(phase, n) for n in names]
                found = [device.measured(phase, n) for n in names]
                y = [median(v) for v in found]
                bars = [
                    [m - min(v) for m, v in zip(y, found, strict=True)],
                    [max(v) - m for m, v in zip(y, found, strict=True)],
                ]
                panel.errorbar(
                    x,
                    y,
                    yerr=bars,
                    label=f"{depth} layers",
                    color=f"C{i}",
                    marker="o",
                    markersize=4,
                    capsize=2,
                    linewidth=1,
                )
            most = max(device.promised(phase, n) for n in device.shapes) * 1.05
            panel.plot([1, most], [1, most], color="0.5", linestyle="--", linewidth=1, label="promised")
            panel.set(
                title=f"{phase}: {device.repetitions[0]['setting']['device']}",
                xlabel=f"promised by the {cost.partition('_')[2].replace('flops', 'FLOPs')}, ×",
                ylabel="measured, ×",
            )
            panel.title.set_fontsize(8)
            panel.grid(alpha=0.25)
        row[0].legend(fontsize=7)
    figure.savefig(out, metadata={"Date": None, "Creator": None})


def write(folder: Path) -> Path:
    """README.md and figures/speedup.svg."""
    names = dict.fromkeys(k.rpartition("/")[0] for k in Records(folder / "records.jsonl").all())
    devices = [Device.read(folder, name) for name in sorted(names)]
    if devices:
        (folder / "figures").mkdir(exist_ok=True)
        draw(devices, folder / "figures" / "speedup.svg")
    path = folder / "README.md"
    path.write_text(readme(folder, devices), encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    print(write(parser.parse_args().study.resolve()))


if __name__ == "__main__":
    main()
