"""Folders of data: what `datasets.save_to_disk` wrote, and clones of the hub's folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from prunetune.data.fields import Row
from prunetune.data.formats import DATA_SUFFIXES, reader_of, suffix_of
from prunetune.errors import DataError, MissingPath


def folder_rows(path: Path, split: str) -> tuple[str, Iterator[Row]]:
    """What a folder of data is called, and the rows of its split.

    Args:
        path: The folder.
        split: `train` or `test`; where there is one split alone, it is taken whatever its name.

    Raises:
        MissingPath: There are no data in it.
        DataError: It has several splits or configurations and none is the wanted one, or is damaged.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "a saved data set", _saved(path, split)
    found = _splits(path)
    files = found[_chosen(found, split, path)]
    return f"{len(files)} file{'s' * (len(files) > 1)} of a folder", chain.from_iterable(
        reader_of(file)[1](file) for file in files
    )


def _saved(path: Path, split: str) -> Iterator[Row]:
    import datasets
    import pyarrow

    try:
        found: Any = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            found = found[_chosen(found, split, path)]
        yield from found.with_format(None)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as e:
        words = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise DataError(f"this saved data set cannot be read ({words})", value=str(path), fix="save it again") from None


def _splits(path: Path) -> dict[str, list[Path]]:
    """Split -> files, as the `datasets` library finds them in a clone (README's configurations, folders, names)."""
    if not any(suffix_of(p) in DATA_SUFFIXES for p in path.rglob("*") if p.is_file() and p.name != "README.md"):
        raise MissingPath("this is a folder, not a file, and holds no data", value=str(path), fix="check the path")
    import datasets

    try:
        with tempfile.TemporaryDirectory(prefix="prunetune-data-") as cache:  # nothing is written beside the data
            builder: Any = datasets.load_dataset_builder(str(path), cache_dir=cache)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        names = _configurations(path)
        words = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise DataError(
            "this folder holds several configurations" if len(names) > 1 else f"no data are found here ({words})",
            value=str(path),
            valid=names or None,
            fix="name one file or one inner folder" + (f": {path.name}/{names[0]}" if names else ""),
        ) from None
    return {str(name): sorted(Path(str(f)) for f in files) for name, files in (builder.config.data_files or {}).items()}


def _configurations(path: Path) -> list[str]:
    import datasets

    try:
        return [str(name) for name in datasets.get_dataset_config_names(str(path))]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _chosen(splits: Any, split: str, path: Path) -> str:
    names = [str(name) for name in splits]
    if split in names:
        return split
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"this folder has no split {split!r}", value=str(path), valid=names, fix="name the file of the split you mean"
    )
