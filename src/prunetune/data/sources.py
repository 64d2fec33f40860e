"""Where text comes from, as a recipe names it. To add a source: a config here, and its reader in `stream`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from prunetune.common.plugins import plugged

FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library that draws takes."""
QUESTION_ANSWER = {"question": "question", "answer": "answer"}


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
    columns: dict[str, str] | None = None
    """`question` and `answer` -> their columns; or `text`, or `messages` -> a column. None: by well-known names."""
    data_dir: str | None = None
    """Folder inside the data set (StarCoder's languages are folders)."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows."""
    strip_marks: bool | None = None
    """Remove GSM8K's calculator marks `<<48/2=24>>`. None: where the answers have them."""


class FileData(BaseModel):
    """A local file or folder: JSON, CSV, TSV, Parquet, Arrow, or plain text (one sample a non-blank line)."""

    model_config = FROZEN
    type: Literal["file"] = "file"
    path: str
    """The file (.gz and the like too), or a folder of such files; `~` and `$VARIABLES` are filled in."""
    columns: dict[str, str] | None = None
    """`question` and `answer` -> their columns; or `text`, or `messages` -> a column. None: by well-known names."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most so many rows."""
    strip_marks: bool | None = None
    """Remove GSM8K's calculator marks `<<48/2=24>>`. None: where the answers have them."""


class GeneratedData(BaseModel):
    """Problems of a reasoning-gym data set, from the training side of the split (see `generate.py`)."""

    model_config = FROZEN
    type: Literal["generator"] = "generator"
    name: str
    """Name of the reasoning-gym data set, such as `gsm_symbolic` (which writes worked solutions)."""
    size: int = Field(gt=0)
    """How many different problems."""
    seed: Seed = 0
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
    seed: Seed = 0
    """Seed of the generator."""


Questions = Annotated[HubData | FileData | GeneratedData | PresetData | DemoData, Field(discriminator="type")]
"""What answers can be sampled to."""


class _Asked(BaseModel):
    model_config = ConfigDict(**FROZEN, serialize_by_alias=True)
    type: Literal["traces"] = "traces"
    of: Literal["original", "current"] = "original"
    """Who answers: the untouched model, or (with `renew`) the one that a round begins with."""
    source: Questions = Field(alias="from")
    """Where questions and their right answers come from."""
    task: str | None = None
    """Task whose verifier judges: one of `evaluate.tasks` by its name, or another that can judge. None: the first of
    `evaluate.tasks` that can."""
    verifier: str | None = None
    """In place of `task`: `number`, `boxed` or `exact`."""
    n: int | None = Field(default=None, gt=0)
    """Questions that are asked, of each round with `renew`. None: all."""


class Sampling(BaseModel):
    """How answers are sampled, and which of them are kept."""

    model_config = FROZEN
    per_question: int = Field(default=4, gt=0)
    """Answers sampled for each question."""
    keep: int = Field(default=1, gt=0)
    """At most so many different right answers of a question are kept, shortest first."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answer; None: the task's. What is cut off by it is not kept."""
    batch_size: int = Field(default=16, gt=0)
    """Questions at once."""


class TracesData(Sampling, _Asked):
    """Answers that a model of the run writes itself: sampled, verified, kept in RUN/traces (method, "Own traces")."""

    model_config = ConfigDict(**FROZEN, serialize_by_alias=True)
    renew: bool = False
    """Sample anew before each round, the next `n` questions; only under `score.data` and a method's `data`."""

    @model_validator(mode="after")
    def _fits(self) -> TracesData:
        if self.of == "current" and not self.renew:
            raise ValueError("of: current needs renew: true, for the model changes from round to round")
        if self.task is not None and self.verifier is not None:
            raise ValueError("task and verifier both judge: leave one of them out")
        return self


DataSource = Annotated[
    SerializeAsAny[
        Annotated[HubData | FileData | GeneratedData | PresetData | DemoData | TracesData, Field(discriminator="type")]
    ],
    plugged("source"),
]
"""Any of them, or what a plugin adds: a model with `type` and `examples()`, which gives rows."""

PRESETS: dict[str, tuple[HubData, ...]] = {
    "math-cot": (  # the paper's scoring and pre-training data
        HubData(name="AI-MO/NuminaMath-CoT", columns={"question": "problem", "answer": "solution"}),
        HubData(name="meta-math/MetaMathQA", columns={"question": "query", "answer": "response"}),
    ),
    "gsm8k": (HubData(name="openai/gsm8k", config="main", columns=QUESTION_ANSWER, strip_marks=True),),
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
