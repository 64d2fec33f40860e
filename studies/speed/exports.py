"""Every form that a model can be exported in beside the model: bytes, perplexity of a text, greedy answers.

    OMP_NUM_THREADS=1 python studies/speed/exports.py --model FOLDER --text FILE [--types f16,q8_0] [--prompts 20]

`prunetune export` makes each; the answers are those to the first questions of GSM8K's test set ($PRUNETUNE_DATA), up to
32 tokens each. llama.cpp is asked where it or a binding is installed (`pip install xllamacpp`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from prunetune.common.table import aligned
from prunetune.common.units import size
from prunetune.data.stream import FileData, load_stream
from prunetune.publish.compressed import SCHEMES, compress
from prunetune.publish.engines import answered, without_llama_cpp
from prunetune.publish.export import export
from prunetune.publish.exported import Row
from prunetune.publish.greedy import reference, said

GGUF = ("f16", "q8_0", "q4_0")


def told(row: Row) -> list[str]:
    """A row of the table."""
    known = "" if row.perplexity is None else f"{row.perplexity:.3f} ± {row.stderr or 0:.3f}"
    return [row.name, size(row.bytes), known, row.answers]


def main() -> None:
    """Print the table, and how many prompts llama.cpp answers as transformers does at f16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--types", default=",".join([*GGUF, *SCHEMES]))
    parser.add_argument("--prompts", type=int, default=20)
    asked = parser.parse_args()
    rows, notes = list[list[str]](), list[str]()
    with tempfile.TemporaryDirectory() as at:
        for kind in asked.types.split(","):
            out = Path(at) / (f"{kind}.gguf" if kind not in SCHEMES else kind)
            if kind in SCHEMES:
                done = compress(asked.model, out, to=kind, text=asked.text)
            else:
                done = export(asked.model, out, quantize=kind, text=asked.text)
            rows += [told(r) for r in (done.rows if not rows else done.rows[1:])]
            notes += [f"{kind}: {note}" for note in (*done.faults, *done.notes)]
            print(f"{kind}: written by {done.by}", flush=True)
            if kind == "f16" and without_llama_cpp() is None:
                notes.append(f"f16 in llama.cpp: {_same(asked.model, out, asked.prompts)}")
    print(aligned(rows, ("form", "bytes", "perplexity", "answers")))
    print("\n".join(notes))


def _same(model: Path, gguf: Path, prompts: int) -> str:
    """How greedy answers of llama.cpp compare with those of plain transformers in fp32."""
    stream = load_stream([FileData(path="$PRUNETUNE_DATA/gsm8k/test.jsonl", limit=prompts)], 0)
    greedy = reference(model, [f"Question: {e.question}\nAnswer:" for e in stream.take(0, prompts)])
    parted, misread = answered(gguf, model, greedy)
    return misread or said(greedy, parted)[1]


if __name__ == "__main__":
    main()
