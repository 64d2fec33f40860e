"""What a stream of many samples costs: the time to make it, to open it, and the memory of a process.

    PRUNETUNE_DATA=… .venv/bin/python studies/speed/streams.py [--rows 1250000] [--at FOLDER]

The rows are GSM8K's training rows, varied: every number of a row is multiplied by 1, 2, 3 …, so that no two are alike.
Each measurement is a process of its own. Two ranks: two processes at once; what they read is hashed by each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PART = 20_000
"""Samples that each rank reads and hashes."""


def multiplied(text: str, times: int) -> str:
    """Every number of a text so many times as large."""
    return re.sub(r"\d+", lambda m: str(int(m[0]) * times), text)


def make(path: Path, rows: int) -> None:
    """Write the varied rows."""
    source = Path(os.environ["PRUNETUNE_DATA"]) / "gsm8k" / "train.jsonl"
    given = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as out:
        for i in range(rows):
            times, row = i // len(given) + 1, given[i % len(given)]
            varied = {k: multiplied(row[k], times) for k in ("question", "answer")}
            out.write(json.dumps({**varied, "question": f"{varied['question']} ({times})"}) + "\n")


def measure(path: Path) -> None:
    """Open the stream and read a part; time, memory (VmRSS and its anonymous part, MB), order. In a new process."""
    from prunetune.data.stream import FileData, load_stream

    begin = time.perf_counter()
    stream = load_stream([FileData(path=str(path))], seed=0)
    opened = time.perf_counter() - begin
    rss = memory()
    digest = hashlib.sha256()
    for example in stream.take(len(stream) // 2, min(len(stream), len(stream) // 2 + PART)):
        digest.update(f"{example.where} {example.question} {example.answer}".encode())
    found = {"seconds": round(opened, 2), "samples": len(stream), "sha": stream.sha, "order": digest.hexdigest()[:16]}
    print(json.dumps({**found, "open_MB": rss, "read_MB": memory()}))


def memory() -> dict[str, int]:
    """VmRSS, its anonymous part and the highest VmRSS so far, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    known = {line.split(":")[0]: int(line.split()[1]) // 1000 for line in lines if line.endswith("kB")}
    return {name: known[name] for name in ("VmRSS", "RssAnon", "VmHWM")}


def main() -> None:
    """Make the rows, then time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_250_000)
    parser.add_argument("--at", type=Path)
    parser.add_argument("--measure", type=Path)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    with tempfile.TemporaryDirectory(dir=args.at) as folder:
        file = Path(folder) / "rows.jsonl"
        make(file, args.rows)
        print(f"{args.rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB")
        command = [sys.executable, __file__, "--measure", str(file)]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path(folder) / "cache")}

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

        print("first ", start().communicate()[0].strip())
        print("second", start().communicate()[0].strip())
        ranks = [start(), start()]
        for rank in ranks:
            print("rank  ", rank.communicate()[0].strip())
    return None


if __name__ == "__main__":
    main()
