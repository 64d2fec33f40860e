"""Training and calibration data: several sources, merged and shuffled once into one stream that stages share out.

stream = load_stream([GeneratedData(name="gsm_symbolic", size=5000), FileData(path="$DATA/train.jsonl")], seed=0)
stream.take(0, 1000)     # the first stage's part; the next stage takes [1000, 2000): no sample is seen twice
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prunetune.data.files import TEXT_SUFFIXES, Row, expand_path, hub_rows, read_rows
from prunetune.data.generators import gym_entries, solution_of
from prunetune.errors import DataError, UnknownName

FROZEN = ConfigDict(frozen=True, extra="forbid")
QUESTION_ANSWER = {"question": "question", "answer": "answer"}


@dataclass(frozen=True)
class Example:
    """One training sample: a question with its worked answer. Running text has an empty question.

    Attributes:
        question: The question, without any template.
        answer: The answer with its reasoning, or the whole text.
        source: Where it came from, for counts and reports.
    """

    question: str
    answer: str
    source: str


class HubData(BaseModel):
    """One split of a hub data set."""

    model_config = FROZEN
    type: Literal["hub"] = "hub"
    name: str
    """Name on the hub, such as `openai/gsm8k`."""
    config: str | None = None
    """Configuration (subset) of the data set."""
    split: str = "train"
    """Split to read."""
    columns: dict[str, str] = Field(default_factory=lambda: dict(QUESTION_ANSWER))
    """`question` and `answer` -> their columns; or `text` -> the column of a general corpus."""
    data_dir: str | None = None
    """Folder inside the data set (StarCoder's languages are folders)."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows."""
    strip_marks: bool = False
    """Remove GSM8K's calculator marks `<<48/2=24>>`."""


class FileData(BaseModel):
    """A local file: JSONL, JSON, Parquet, or plain text (one sample a non-blank line)."""

    model_config = FROZEN
    type: Literal["file"] = "file"
    path: str
    """The file; `~` and `$VARIABLES` are filled in."""
    columns: dict[str, str] | None = None
    """`question` and `answer` -> their columns, or `text` -> a column. Default: those names; `text` for plain text."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows."""
    strip_marks: bool = False
    """Remove GSM8K's calculator marks `<<48/2=24>>`."""


class GeneratedData(BaseModel):
    """Problems of a reasoning-gym data set, from the training side of the split (see `generate.py`)."""

    model_config = FROZEN
    type: Literal["generator"] = "generator"
    name: str
    """Name of the reasoning-gym data set, such as `gsm_symbolic` (which writes worked solutions)."""
    size: int = Field(gt=0)
    """How many different problems."""
    seed: int = 0
    """Seed of the generator."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that data set."""


class PresetData(BaseModel):
    """A named mixture of hub data sets; see `PRESETS`."""

    model_config = FROZEN
    type: Literal["preset"] = "preset"
    name: str
    """One of `PRESETS`."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows of each part."""


class DemoData(BaseModel):
    """Training problems of the embedded demo."""

    model_config = FROZEN
    type: Literal["demo"] = "demo"
    size: int = Field(gt=0)
    """How many problems."""
    seed: int = 0
    """Seed of the generator."""


DataSource = Annotated[HubData | FileData | GeneratedData | PresetData | DemoData, Field(discriminator="type")]

PRESETS: dict[str, tuple[HubData, ...]] = {
    "math-cot": (  # the paper's scoring and pre-training data
        HubData(name="AI-MO/NuminaMath-CoT", columns={"question": "problem", "answer": "solution"}),
        HubData(name="meta-math/MetaMathQA", columns={"question": "query", "answer": "response"}),
    ),
    "gsm8k": (HubData(name="openai/gsm8k", config="main", strip_marks=True),),
    "math-12k": (HubData(name="hiyouga/math12k", columns={"question": "problem", "answer": "answer"}),),  # its RL data
    "code": (  # its data for the code task
        HubData(
            name="OpenCoder-LLM/opc-sft-stage2",
            config="educational_instruct",
            columns={"question": "instruction", "answer": "output"},
        ),
        HubData(name="bigcode/starcoderdata", data_dir="python", columns={"text": "content"}),
    ),
}


@dataclass(frozen=True)
class Stream:
    """All samples in their final order.

    Attributes:
        sha: Hash of the samples and their order.
        repeated: Samples left out because an equal one is there already.
    """

    examples: tuple[Example, ...] = field(repr=False)
    sha: str
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, start: int, end: int) -> list[Example]:
        """Samples `[start, end)`. Raises DataError if there are not so many."""
        if not 0 <= start <= end <= len(self):
            raise DataError(
                f"the data hold {len(self)} samples, and this part goes past their end",
                value=f"[{start}, {end})",
                fix="add data, or take fewer samples a round",
            )
        return list(self.examples[start:end])


def load_stream(sources: Sequence[DataSource], seed: int) -> Stream:
    """Read all sources, merge them (a repeated sample counts once), and shuffle once by the seed."""
    if not sources:
        raise DataError("no data source is given", fix="add {type: generator, name: gsm_symbolic, size: 1000}")
    read = [example for source in sources for example in read_source(source)]
    merged = list({(e.question, e.answer): e for e in reversed(read)}.values())[::-1]  # the first copy stays
    random.Random(seed).shuffle(merged)
    digest = hashlib.sha256()
    for e in merged:
        digest.update(f"{len(e.question)} {len(e.answer)} {e.question}{e.answer}".encode(errors="surrogatepass"))
    return Stream(tuple(merged), digest.hexdigest()[:16], repeated=len(read) - len(merged))


def read_source(source: DataSource) -> list[Example]:
    """All samples of one source, in its own order."""
    readers: dict[str, Callable[[Any], list[Example]]] = {
        "hub": _hub, "file": _file, "generator": _generated, "preset": _preset, "demo": _demo,
    }  # fmt: skip
    return readers[source.type](source)


def _hub(source: HubData) -> list[Example]:
    columns = _checked(source.columns)
    where = (source.name, source.config, source.split)
    rows = hub_rows(*where, columns=columns, limit=source.limit, data_dir=source.data_dir)
    return _examples(rows, source.name, source.strip_marks)


def _file(source: FileData) -> list[Example]:
    path = expand_path(source.path)
    default = {"text": "text"} if path.suffix in TEXT_SUFFIXES else QUESTION_ANSWER
    rows = read_rows(path, _checked(source.columns or default), source.limit)
    return _examples(rows, path.name, source.strip_marks)


def _generated(source: GeneratedData) -> list[Example]:
    entries = gym_entries(source.name, source.size, source.seed, "train", source.options)
    return [Example(str(e["question"]), solution_of(e), source.name) for e in entries]


def _preset(source: PresetData) -> list[Example]:
    if source.name not in PRESETS:
        raise UnknownName("data preset", source.name, PRESETS)
    parts = PRESETS[source.name]
    limit = {"limit": source.limit}
    return [example for part in parts for example in _hub(part.model_copy(update=limit))]


def _demo(source: DemoData) -> list[Example]:
    from prunetune.data.demo.problems import problems

    return [Example(q, a, "demo") for q, a in problems(source.size, source.seed, "train")]


def _checked(columns: Mapping[str, str]) -> dict[str, str]:
    if set(columns) not in ({"question", "answer"}, {"text"}):
        raise DataError(
            "`columns` must name a column for question and answer, or one for text",
            value=dict(columns),
            valid="{question: …, answer: …} or {text: …}",
            fix="mend `columns` of this data source",
        )
    return dict(columns)


def strip_marks(answer: str) -> str:
    """A GSM8K answer without its calculator marks: `48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return re.sub(r"<<[^<>]*>>", "", answer)


def _examples(rows: Iterable[Row], source: str, strip: bool) -> list[Example]:
    examples = []
    for number, row in enumerate(rows, start=1):
        question, answer = str(row.get("question", "")), row["text"] if "text" in row else row["answer"]
        if not isinstance(answer, str | int | float) or ("question" in row and not question.strip()):
            raise DataError(f"row {number} of {source} has an empty question or answer", value=row, fix="mend the row")
        examples.append(Example(question, strip_marks(str(answer)) if strip else str(answer), source))
    return examples


# ------------------------------------------------------------------------------------------------------------ overlap


@dataclass(frozen=True)
class Overlap:
    """How many evaluation questions also occur in the training data.

    Attributes:
        exact: As they stand.
        normalised: Case, spacing and punctuation aside.
        digits: Every number aside as well: the same problem with other figures.
        examples: A few of the questions found, the closest kind first.
        questions: How many questions were checked.
    """

    exact: int
    normalised: int
    digits: int
    examples: tuple[str, ...]
    questions: int


def overlap(train: Iterable[Example], questions: Iterable[str]) -> Overlap:
    """Leak check between training samples and evaluation questions."""
    kinds: tuple[Callable[[str], str], ...] = (str, _normal, _masked)
    seen: tuple[set[str], ...] = (set(), set(), set())
    for example in train:
        for known, form in zip(seen, kinds, strict=True):
            known.add(form(example.question or example.answer))
    asked = list(questions)
    found = [[q for q in asked if form(q) in known] for known, form in zip(seen, kinds, strict=True)]
    shown = list(dict.fromkeys(q for hits in found for q in hits))[:5]
    return Overlap(len(found[0]), len(found[1]), len(found[2]), tuple(shown), len(asked))


def _normal(text: str) -> str:
    # An operator behind a number is no punctuation: 12+3 and 12-3 are two questions.
    return " ".join(re.findall(r"\w+|(?:(?<=[\d)])|(?<=[\d)] ))[-+*/^%=<>]", text.casefold()))


def _masked(text: str) -> str:
    return re.sub(r"\d+(?: \d+)*", "0", _normal(text))
