"""The same rows from every file that people have; what is no text is told with line, byte and position."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.data.decode import read_text
from prunetune.data.files import open_rows, read_rows
from prunetune.errors import DataError, MissingPath, PrunetuneError

ROWS = [{"question": f"Größe {i}?\nzwei, “drei”", "answer": f'{i} "x"'} for i in range(4)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)


def _csv(mark: str) -> str:
    quoted = [[f'"{v}"' for v in (r["question"], r["answer"].replace('"', '""'))] for r in ROWS]
    return "".join(mark.join(fields) + "\n" for fields in [["question", "answer"], *quoted])


TEXTS: dict[str, str] = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES.replace("\n", "\n\n"),
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "lines.json": LINES,
    "lines.txt": LINES,
    "lines.csv": LINES,
    "lines": LINES,
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "pretty.jsonl": json.dumps(ROWS, indent=2),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "one-behind-the-other.json": "\n".join(json.dumps(r, indent=1) for r in ROWS),
    "rows.csv": _csv(","),
    "semicolons.csv": _csv(";"),
    "rows.tsv": _csv("\t"),
    "csv.jsonl": _csv(","),
    "CAPITALS.CSV": _csv(","),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_any_shape_and_marked_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    assert read_rows(tmp_path / name, None) == ROWS
    assert read_rows(tmp_path / name, None, limit=2) == ROWS[:2]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    for name in ("rows.jsonl", "rows.csv", "list.json"):
        for named in (name + suffix, f"no-suffix-{suffix[1:]}-{name}"):
            (tmp_path / named).write_bytes(PACKED[suffix](TEXTS[name].encode()))
            assert read_rows(tmp_path / named, None) == ROWS
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    (tmp_path / f"t.parquet{suffix}").write_bytes(PACKED[suffix](table.getvalue().to_pybytes()))
    assert read_rows(tmp_path / f"t.parquet{suffix}", None) == ROWS
    whole = PACKED[suffix](LINES.encode() * 50)
    (tmp_path / f"cut.jsonl{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged or cut short|cannot be read"):
        read_rows(tmp_path / f"cut.jsonl{suffix}", None)


def test_tables(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "no-suffix")
    pyarrow.feather.write_feather(table, tmp_path / "t.feather")
    with pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as f, pyarrow.ipc.new_stream(f, table.schema) as w:
        w.write_table(table)
    for name in ("t.parquet", "no-suffix", "t.feather", "t.arrow"):
        assert read_rows(tmp_path / name, None) == ROWS, name
    for name in ("bad.parquet", "bad.arrow"):
        (tmp_path / name).write_bytes(b"hello" * 9)
        with pytest.raises(DataError, match=r"not an? (Parquet|Arrow) file"):
            read_rows(tmp_path / name, None)


def test_saved_data_sets(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(str(tmp_path / "several"))
    assert read_rows(tmp_path / "one", None) == read_rows(tmp_path / "several", None) == ROWS
    assert read_rows(tmp_path / "several", None, split="test") == ROWS[3:]
    with pytest.raises(DataError, match="no split 'dev'"):
        read_rows(tmp_path / "several", None, split="dev")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "one", None)


def test_clones_of_the_hubs_folders(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    for place in ("plain", "inner/data", "two/main", "two/socratic"):
        (tmp_path / place).mkdir(parents=True)
        pyarrow.parquet.write_table(table.slice(0, 3), tmp_path / place / "train-00000-of-00002.parquet")
        pyarrow.parquet.write_table(table.slice(3), tmp_path / place / "train-00001-of-00002.parquet")
        pyarrow.parquet.write_table(table.slice(1, 1), tmp_path / place / "test-00000-of-00001.parquet")
    (tmp_path / "plain" / "README.md").write_text("# A data set\n")
    configs = [
        {"config_name": n, "data_files": [{"split": "train", "path": f"{n}/train-*"}]} for n in ("main", "socratic")
    ]
    (tmp_path / "two" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    for place in ("plain", "inner", "two/main"):
        assert read_rows(tmp_path / place, None) == ROWS, place
        assert read_rows(tmp_path / place, None, split="test") == ROWS[1:2], place
    with pytest.raises(DataError, match=r"several configurations[\s\S]*main, socratic"):
        read_rows(tmp_path / "two", None)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.jsonl").write_text(LINES)
    assert read_rows(tmp_path / "lines", None) == ROWS
    with pytest.raises(MissingPath, match="no data"):
        read_rows(
            shutil.copytree(tmp_path / "plain", tmp_path / "none", ignore=shutil.ignore_patterns("*.parquet")), None
        )


BAD: list[tuple[str, bytes, str]] = [
    ("latin1.jsonl", LINES.encode("latin-1", "replace"), r"latin1\.jsonl, line 1 is not UTF-8 \(byte 0xf6 at 16\)"),
    ("second.csv", b"question,answer\na,\xe9\n", r"line 2 is not UTF-8 \(byte 0xe9 at 2\)"),
    ("latin1.txt", b"caf\xe9\n", r"line 1 is not UTF-8 \(byte 0xe9 at 3\)"),
    ("nomark.jsonl", LINES.encode("utf-16-le"), "NUL byte at 1.*UTF-16 without"),
    ("cut16.jsonl", LINES.encode("utf-16")[:-1], "line 4 is not UTF-16"),
    ("nul.jsonl", b'{"question": "a\x00b"}\n', "line 1 holds a NUL byte at 15"),
    ("twice.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "line 2: the key 'a' is there twice"),
    ("digits.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1 is not valid JSON .*4300"),
    ("deep.jsonl", b'{"a": ' + b"[" * 100_000, "line 1 is not valid JSON .*nested"),
    ("deep.json", b"[" * 100_000, "not valid JSON .*nested"),
    ("cut.json", b'[{"a": 1},', "line 1 is not valid JSON"),
    ("words.jsonl", b"hello there\n", "line 1 is not valid JSON"),
    ("short.csv", b"question,answer\na,b\nc\n", "row 2 has 1 fields, and the header 2"),
    ("long.csv", b"question,answer\na,b,c\n", "row 1 has 3 fields"),
    ("quote.csv", b'question,answer\n"a,b\n', "not valid CSV"),
    ("same.csv", b"question,question\na,b\n", "same name"),
    ("book.xlsx", b"PK\x03\x04rest", "a workbook"),
    ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ("p.pkl", b"\x80\x04\x95rest", "pickle"),
    ("blank.csv", b"\n\n", "no rows"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name, None)


def test_a_link_to_nowhere_and_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(MissingPath, match="a link to nothing"):
        read_rows(tmp_path / "link.jsonl", None)


def test_whole_texts(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeffa\r\nb\rc\n".encode())
    assert read_text(tmp_path / "t.txt") == "a\nb\nc\n"


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["r.jsonl", "r.json", "r.csv", "r.tsv", "r.txt", "r.parquet", "r.arrow", "r"]),
    head=st.sampled_from([b"", b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1", b"ARROW1", b"\x1f\x8b", b"BZh9", b"[", b"{", b"\xff\xff\xff\xff"]),
    body=st.binary(max_size=60) | st.text(alphabet='{}[]",:\n\r\t1a\\', max_size=60).map(str.encode),
)  # fmt: skip
def test_any_bytes_are_rows_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, name: str, head: bytes, body: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(head + body)
    try:
        rows: list[dict[str, Any]] = list(open_rows(path)[1])
    except PrunetuneError:
        return
    assert all(isinstance(row, dict) for row in rows)
