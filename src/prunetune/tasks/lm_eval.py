"""Local files in the place of an lm-eval task's hub data set, in the source's own formats.

A split of a task is FOLDER/SPLIT.jsonl (or .json, .parquet, SPLIT-00000-of-….parquet, or a folder of one JSON file a
problem, as MATH comes); for a task that is one subject of many, FOLDER/SUBJECT/SPLIT… or FOLDER/SPLIT/SUBJECT/….
A folder with a single data file is its test split.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prunetune.common.files import read_json
from prunetune.data.files import Row, expand_path, hub_rows, read_rows
from prunetune.errors import DataError, MissingExtra, MissingPath, TaskError, UnknownName
from prunetune.tasks import mbpp
from prunetune.tasks.lm_eval_rows import check_rows, read_by

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
SOURCE_NAMES = {"counting_and_probability": "counting_&_probability"}  # folders of the MATH archive
MBPP_QUESTION = "{{text}} Your code should pass these tests:\n\n{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}"
# Where lm-eval keeps the paper's tasks: reading these alone is quick, its whole index takes many seconds.
PLACES: dict[str, tuple[str, ...]] = {
    "gsm8k": ("gsm8k",),
    "gsm8k_cot": ("gsm8k",),
    "ifeval": ("ifeval",),
    "mbpp": (),
    "minerva_math": ("minerva_math", "benchmarks/minerva_math.yaml"),
    "minerva_math500": ("minerva_math",),
}
LOADER = "custom_dataset: !function prunetune.tasks.lm_eval.load_split_files\n"


class Unconfined(TaskError):
    """A task whose model-written code lm-eval would run outside our sandbox."""

    def __init__(self, task: str) -> None:
        super().__init__(
            "lm-eval would run what the model wrote unconfined, which prunetune never does",
            value=task,
            valid="mbpp, which runs in the sandbox",
        )


def check_tasks(names: Sequence[str], data: Mapping[str, str], allow_code_execution: bool) -> str:
    """Everything that can be known to fail before a model is loaded; the version of lm-eval.

    Raises:
        MissingExtra: lm-eval is not installed.
        UnknownName: no such task.
        MissingPath, DataError: data that is not there, or lacks a split that the task needs.
        TaskError: a task that needs permission or a resource it does not have.
    """
    check_installed("lm_eval", "eval", "lm-eval's benchmarks")
    check_needs(names, allow_code_execution)
    with tempfile.TemporaryDirectory(prefix="prunetune-lm-eval-") as folder:
        open_tasks(names, data, Path(folder))
    return importlib.metadata.version("lm_eval")


def check_installed(package: str, extra: str, needed_for: str) -> None:
    """Raise MissingExtra if a package cannot be imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra, needed_for)


def check_needs(names: Sequence[str], allow_code_execution: bool) -> None:
    """Raise TaskError for a task that runs model-written code without permission, or that lacks a resource."""
    if "mbpp" in names and not allow_code_execution:
        raise TaskError(
            "this task runs what the model wrote, which happens only if you allow it",
            value="mbpp",
            fix="--allow-code-execution (allow_code_execution: true)",
        )
    if any(name.startswith("ifeval") for name in names):
        _check_punkt()


def _check_punkt() -> None:
    """Instruction following splits sentences with nltk's data, which lm-eval downloads at import."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        if not nltk.download("punkt_tab", quiet=True):
            raise TaskError(
                "ifeval needs nltk's sentence splitter, which cannot be downloaded here",
                value="punkt_tab",
                fix="where there is a network: python -m nltk.downloader punkt_tab; copy ~/nltk_data here",
            ) from None


def open_tasks(names: Sequence[str], data: Mapping[str, str], folder: Path) -> TaskManager:
    """lm-eval's tasks, with local files in place where `data` says so.

    Args:
        names: Tasks or groups that will be asked for.
        data: Task (or group) -> file or folder.
        folder: An empty folder for YAML files.

    Raises:
        UnknownName: no such task.
        MissingPath, DataError: data that is not there, or lacks a split that the task needs.
        TaskError: a task whose model-written code would run outside our sandbox.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    places = [root / place for name in names for place in PLACES.get(name, ())]
    known = all(name in PLACES for name in names) and all(place.exists() for place in places)
    for place in places:
        if known and place.is_file():
            shutil.copy(place, folder)

    def indexed() -> TaskManager:
        if not known:
            return TaskManager(include_path=str(folder))
        folders = dict.fromkeys(str(p) for p in [*places, folder] if p.is_dir())
        return TaskManager(include_defaults=False, include_path=list(folders))

    manager = indexed()
    tasks = {*manager.all_tasks, *PLACES}
    for name in names:
        if name not in tasks:
            raise UnknownName("lm-eval task", name, tasks)
    write_overrides(manager, names, data, folder)
    return indexed() if any(folder.iterdir()) else manager


def write_overrides(manager: TaskManager, names: Sequence[str], data: Mapping[str, str], out: Path) -> None:
    """One YAML file for each task among `names` (or below a group of that name) that has local data."""
    groups = [n for n in names if n not in manager.all_subtasks]
    for task in manager.all_subtasks:
        asked = task in names or any(task.startswith(f"{n}_") for n in groups)
        key = key_of(task, data)
        path = manager.task_index[task].yaml_path
        if task == "mbpp" or not asked or path is None:
            continue
        settings = _settings(path)
        if settings.get("unsafe_code"):
            raise Unconfined(task)
        if key is None:
            continue
        files = _split_files(expand_path(data[key]), task, settings)
        for split, found in files.items():
            check_rows(_rows(found), read_by(settings), f"{found[0] if len(found) == 1 else found[0].parent} ({split})")
        lines = {
            "include": str(path),
            "task": task,
            "dataset_kwargs": {"files": {split: [str(f) for f in found] for split, found in files.items()}},
            **{s: None for s in SPLITS if settings.get(s) and settings[s] not in files},
        }
        (out / f"{task}.yaml").write_text(yaml.safe_dump(lines) + LOADER, encoding="utf-8")
    if "mbpp" in names:
        _write_mbpp(data.get("mbpp"), out)


def load_split_files(files: Mapping[str, Sequence[str]], **_: Any) -> dict[str, Any]:
    """Called by lm-eval: the splits as data sets."""
    import datasets

    return {split: datasets.Dataset.from_list(_rows([Path(p) for p in paths])) for split, paths in files.items()}


def load_mbpp(path: str | None, **_: Any) -> dict[str, Any]:
    """Called by lm-eval: MBPP's test split, from the source's file or the hub."""
    import datasets

    return {"test": datasets.Dataset.from_list(mbpp.test_rows(_mbpp_rows(path)))}


def mbpp_results(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """Called by lm-eval: pass@1 of one candidate, in the sandbox (the permission was checked before anything ran)."""
    return {"pass_at_1": float(mbpp.verify(results[0], mbpp.reference(doc), allowed=True).correct)}


def key_of(task: str, data: Mapping[str, str]) -> str | None:
    """The entry of `data` for a task: its own, or the longest that its name goes on from (`gsm8k` for `gsm8k_cot`)."""
    fitting = [k for k in data if task == k or task.startswith(f"{k}_")]
    return max(fitting, key=len, default=None)


def _settings(path: Path) -> dict[str, Any]:
    """A task's YAML with what it includes; functions stay unresolved."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    own = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506  # a SafeLoader
    include = own.pop("include", None)
    return {**(_settings(path.parent / include) if include else {}), **own}


def _split_files(folder: Path, task: str, settings: Mapping[str, Any]) -> dict[str, list[Path]]:
    if not folder.exists():
        raise MissingPath(f"no such data for {task}", value=str(folder), fix="check --data")
    subject = settings.get("dataset_name")
    wanted = list(dict.fromkeys(settings[s] for s in SPLITS if settings.get(s)))
    test = settings.get("test_split") or settings.get("validation_split")
    found = {split: _files_of(folder, str(split), str(subject)) for split in wanted}
    found = {split: files for split, files in found.items() if files}
    if test not in found:
        alone = [folder] if folder.is_file() else [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES]
        if len(alone) != 1:
            raise DataError(
                f"no file for the split {test!r} of {task}",
                value=str(folder),
                valid=f"{test}.jsonl, {test}.json, {test}.parquet, or a folder {test}/ of JSON files",
                fix="check --data",
            )
        found[str(test)] = alone
    shots = settings.get("fewshot_split")
    own_samples = (settings.get("fewshot_config") or {}).get("samples")
    if shots and shots not in found and settings.get("num_fewshot") and not own_samples:
        raise DataError(f"no file for the worked examples of {task} (split {shots!r})", value=str(folder), fix="add it")
    return found


def _files_of(folder: Path, split: str, subject: str) -> list[Path]:
    names = [subject, SOURCE_NAMES.get(subject, subject)]
    for base in [*(folder / n for n in names), folder]:
        single = [base / f"{split}{suffix}" for suffix in SUFFIXES]
        found = [p for p in single if p.is_file()] or sorted(base.glob(f"{split}-*.parquet"))
        if found:
            return found
    for base in [*(folder / split / n for n in names), folder / split]:
        found = sorted(base.glob("*.json"), key=lambda p: (len(p.name), p.name))
        if found:
            return found
    return []


def _rows(paths: Sequence[Path]) -> list[Row]:
    rows: list[Row] = []
    for path in paths:
        value = read_json(path) if path.suffix == ".json" else None
        if isinstance(value, dict) and not any(isinstance(v, list) for v in value.values()):
            rows.append(value)  # one problem a file
        else:
            rows.extend(read_rows(path, None))
    return rows


def _mbpp_rows(path: str | None) -> list[Row]:
    names = ("task_id", "text", "code", "test_list", "test_setup_code")
    columns = {n: n for n in names}
    if path is None:
        where = ("google-research-datasets/mbpp", "full")
        return [row for split in ("prompt", "test") for row in hub_rows(*where, split, columns=columns, limit=None)]
    file = expand_path(path)
    return read_rows(file / "mbpp.jsonl" if file.is_dir() else file, columns)


def _write_mbpp(path: str | None, out: Path) -> None:
    """lm-eval's `mbpp` in full: its own YAML cannot be included, because its scorer is fetched when that is read."""
    rows = _mbpp_rows(path)
    shots = {int(r["task_id"]): r for r in rows}
    lines = {
        "task": "mbpp",
        "dataset_path": "google-research-datasets/mbpp",
        "dataset_name": "full",
        "dataset_kwargs": {"path": path},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": mbpp.PROMPT.replace("{question}", MBPP_QUESTION),
        "doc_to_target": "{% if is_fewshot is defined %}{{code}}\n[DONE]{% else %}{{test_list|join('\n')}}{% endif %}",
        "target_delimiter": "",
        "metric_list": [{"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": list(mbpp.STOP), "do_sample": False},
        "num_fewshot": 3,
        "fewshot_config": {
            "sampler": "first_n",
            "samples": [{**shots[i], "is_fewshot": True} for i in mbpp.SHOT_IDS[:3] if i in shots],
        },
        "metadata": {"version": 1.0},
    }
    functions = "custom_dataset: !function prunetune.tasks.lm_eval.load_mbpp\n"
    functions += "process_results: !function prunetune.tasks.lm_eval.mbpp_results\n"
    (out / "mbpp.yaml").write_text(yaml.safe_dump(lines) + functions, encoding="utf-8")
