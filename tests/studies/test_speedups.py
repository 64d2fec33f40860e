"""Cut against cost: what is promised, what a repetition leaves, and the page from invented records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import speedups
from records import Records
from speedup_tables import Device, write
from speedups import SMOLLM2_135M, build, promised, shapes

CONFIG = {**SMOLLM2_135M, "vocab_size": 104, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


def test_the_shape_is_smollm2s_and_the_grid_is_full():
    assert promised(SMOLLM2_135M, 1536, 30, 128, 32, 1)["params"] == 134_515_008  # the model's published size
    found = shapes(SMOLLM2_135M)
    assert next(iter(found.items())) == ("1536x30", (1536, 30))
    assert {w for w, _ in found.values()} == {1536, 1152, 768, 384} and {d for _, d in found.values()} == {30, 22, 15}
    assert len(found) == 12


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_reads_every_weight_once_but_no_table_that_is_only_looked_up(tied):
    import torch

    config = {**CONFIG, "tie_word_embeddings": tied}
    model = build(config, 24, 2, torch.device("cpu"))
    read = [p for n, p in model.named_parameters() if tied or "embed_tokens" not in n]
    cache = 3 * 2 * 2 * 2 * 2 * 8 * (10 + 2)  # batch, bytes, layers, keys and values, heads, head_dim, tokens half-way
    assert promised(config, 24, 2, 10, 4, 3)["decode_bytes"] == sum(2 * p.numel() for p in read) + cache
    assert promised(config, 24, 2, 10, 4, 3)["params"] == model.num_parameters()


def test_repetitions_are_measured_once_and_never_mixed(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    call = [str(tmp_path), "--config", str(path), "--prompt", "6", "--new", "2", "--timings", "1", "--threads", "1"]
    assert speedups.main([*call, "--repeats", "1"]) == 0
    records = Records(tmp_path / "records.jsonl")
    first = records.get("cpu-1/0")
    assert speedups.main([*call, "--repeats", "2"]) == 0
    assert records.get("cpu-1/0") == first
    device = Device.read(tmp_path, "cpu-1")
    assert [r["repetition"] for r in device.repetitions] == [0, 1]
    assert set(device.shapes) == set(shapes(CONFIG))
    assert all(s["prefill_ms"] > 0 and s["decode_ms_per_token"] > 0 for s in device.shapes.values())
    with pytest.raises(SystemExit, match="another setting"):
        speedups.main([*call, "--batch", "2"])
    assert "1 timings" in write(tmp_path).read_text()


def invented(study: Path, arrived: dict[str, float]) -> None:
    """Records in which a share of the promised saving arrives: by axis, a little more in each repetition."""
    found = shapes(SMOLLM2_135M)
    costs = {n: promised(SMOLLM2_135M, *s, 128, 32, 1) for n, s in found.items()}
    whole = costs["1536x30"]
    for repetition in range(3):
        measured: dict[str, Any] = {}
        for name, (width, depth) in found.items():
            axis = "both" if width < 1536 and depth < 30 else "width" if width < 1536 else "depth"
            share = arrived[axis] + 0.02 * repetition
            kept = {k: costs[name][k] / whole[k] for k in whole}
            measured[name] = {
                "width": width, "depth": depth, **costs[name],
                "prefill_ms": (100 + repetition) * (1 - share * (1 - kept["prefill_flops"])),
                "decode_ms_per_token": 10 * (1 - 0.5 * (1 - kept["decode_bytes"])),
            }  # fmt: skip
        setting = {
            "timings": 5,
            "prompt": 128,
            "new": 32,
            "batch": 1,
            "device": "an invented CPU",
            "config": SMOLLM2_135M,
        }
        record = {"setting": setting, "repetition": repetition, "load_before": 0.1, "seconds": 1.0, "torch": "2",
                  "transformers": "5", "shapes": measured}  # fmt: skip
        Records(study / "records.jsonl").put(f"cpu-2/{repetition}", record)


def test_the_page_equals_what_the_records_were_made_from(tmp_path):
    invented(tmp_path, {"width": 0.95, "depth": 0.7, "both": 0.88})
    page = write(tmp_path).read_text()
    assert "| prefill | width alone | 97 % [95 %, 99 %] | **held** |" in page
    assert "| prefill | depth alone | 72 % [70 %, 74 %] | **did not hold** |" in page
    assert "| prefill | both | 90 % [88 %, 92 %] | **undecided** |" in page
    assert "| decode | both | 50 % [50 %, 50 %] | **did not hold** |" in page
    line = next(row for row in page.splitlines() if row.startswith("| 384 (25 %) | 15 (50 %) |"))
    costs = [promised(SMOLLM2_135M, *s, 128, 32, 1) for s in ((1536, 30), (384, 15))]
    ratio = costs[0]["prefill_flops"] / costs[1]["prefill_flops"]
    assert f"| {ratio:.2f} | {1 / (1 - 0.9 * (1 - 1 / ratio)):.2f} [" in line
    figure = tmp_path / "figures" / "speedup.svg"
    before = page, figure.read_bytes()
    assert (write(tmp_path).read_text(), figure.read_bytes()) == before


def test_a_study_without_records_has_a_page(tmp_path):
    assert "Nothing measured yet" in write(tmp_path).read_text()
    assert not (tmp_path / "figures").exists()
