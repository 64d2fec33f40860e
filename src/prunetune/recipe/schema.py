"""The recipe: one YAML file (or a few options) that decides a whole run. Unknown keys are errors.

recipe = Recipe.read("recipe.yaml")             # or Recipe(model="demo", data=[...], prune={"target": 0.6})
recipe.write(path)                              # fully resolved: every default spelled out
"""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from prunetune.common.files import replacing
from prunetune.common.yaml import dump_yaml, read_mapping
from prunetune.data.sources import Seed
from prunetune.data.stream import DataSource
from prunetune.errors import MissingPath, UnknownName
from prunetune.models.prompt import PromptFormat
from prunetune.pruning.criteria import blockwise
from prunetune.recipe.bases import with_base
from prunetune.recipe.explain import explain
from prunetune.recipe.goals import seconds, written_out
from prunetune.recipe.measured import EvaluateConfig, StopConfig
from prunetune.recipe.score import ScoreConfig
from prunetune.recipe.traces import check_traces
from prunetune.schedule.reach import in_blocks
from prunetune.schedule.target import PruneConfig
from prunetune.tune.methods import TuneConfig
from prunetune.tune.methods.cpt import Cpt


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ProtectConfig(_Config):
    """Neurons that matter on a second corpus are not removed (method, section 2)."""

    data: list[DataSource] = Field(min_length=1)
    """The corpus: general text, or another task."""
    share: float = Field(0.05, gt=0, lt=1)
    """Top share of each layer's current width that is not eligible. Small against the neurons that stay, or it costs
    accuracy (studies/06-criteria)."""
    samples: int = Field(256, gt=0)
    """Sequences scored, once a round."""


TOKENS = 20_000_000
"""Recovery tokens of a run that names no budget: it must end."""


def _recovery() -> list[TuneConfig]:
    return [Cpt(tokens=TOKENS)]


class Recipe(_Config):
    """Everything that decides a run."""

    model: str
    """`demo`, a folder, a .gguf file, `package:NAME`, or a hub name."""
    data: list[DataSource] = Field(min_length=1)
    """Reasoning sequences (question and chain-of-thought answer) for scoring and recovery: one shuffled stream."""
    prune: PruneConfig
    """How far, and in which steps."""
    within: Annotated[float, BeforeValidator(seconds)] | None = Field(None, gt=0)
    """Time of the whole run: seconds, or 2h, 90min (short: `budget: 2h`); takes the place of the methods' budgets."""
    score: ScoreConfig = ScoreConfig()
    """How redundancy is measured."""
    compensate: Literal["none", "least-squares", "least-squares-neurons"] = "least-squares"
    """`least-squares`: before any training, fold what is removed into the neurons that stay (docs/method.md).
    `least-squares-neurons`: removed layers are not folded; better where neurons still go in later rounds. Of a mixture
    of experts it is always that, inside each expert. The paper: none."""
    protect: ProtectConfig | None = None
    """A second corpus whose neurons stay."""
    budget: Literal["equal", "damage"] = "damage"
    """`damage`: probes decide how far each round goes and its share of the tokens; equal: as the paper has it. A time
    (2h, 10min): short for `within`."""
    damage_per_round: float = Field(0.3, gt=0)
    """`prune.rounds: auto`: predicted loss (nats) that one round may add."""
    do_no_harm: bool = True
    """If the held-out loss is higher after a round's recovery than straight after its cut, weights between the two
    stay, as far from the cut model's as does no harm."""
    stop_at: StopConfig | None = None
    """As small as possible while the wanted accuracy is kept; the target (none: `smallest`) is how far to try. With a
    ladder nothing is searched: the smallest rung that keeps it is the one that the report recommends."""
    recover: list[TuneConfig] = Field(default_factory=_recovery)
    """Methods of a round, one after another (Algorithm 1, lines 9-10: continual pre-training, then GRPO)."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured."""
    prompt: PromptFormat = PromptFormat()
    """How questions become prompts, everywhere."""
    control: Literal["none", "once", "naive"] = "none"
    """`once`: also prune to the same size in one round with the same recovery budget, into RUN/control. Where the run
    is one round itself, that would be the run again: the control is the bare cut (no compensation, `contribution`).
    `naive`: the same size by hand: the last layers and the neurons with the smallest weights go, and nothing else."""
    keep: Literal["best", "all"] = "best"
    """Models kept on disk: the newest and the best, or all. A share (0.95, 95%): short for `stop_at`."""
    launcher: str | None = None
    """Several devices, for all that runs a model: arguments of `accelerate launch`, or ddp, fsdp2, zero2, zero3."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where scoring, evaluation and recovery run."""
    log: tuple[str, ...] = ()
    """Who is told of each step and each round, beside `events.jsonl`: trackio, wandb, tensorboard, or a plugin's
    callback."""
    seed: Seed = 0
    """Seed of everything random."""

    @property
    def probed(self) -> bool:
        """Whether measurements decide on the steps, so that they are not known beforehand."""
        return self.budget == "damage"

    @property
    def searches(self) -> bool:
        """Whether a search decides how small the model becomes."""
        return self.stop is not None and not self.prune.by_threshold

    @property
    def stop(self) -> StopConfig | None:
        """What a round must keep to stand; None with a ladder, whose rungs stand whatever they keep."""
        return None if self.prune.ladder else self.stop_at

    @property
    def foreseen(self) -> bool:
        """Whether all steps are known before anything runs."""
        return not (self.probed or self.searches or self.prune.by_threshold or self.prune.open)

    @property
    def reserved(self) -> int:
        """Sequences at the start of the data that are never trained on: those that are scored, and held-out ones."""
        return self.score.held_out + (0 if self.score.data else self.score.count)

    @model_validator(mode="before")
    @classmethod
    def _fitting(cls, value: Any) -> Any:
        """A default that rules out what the recipe says gives way; what is said is never changed."""
        if isinstance(value, dict):
            value = written_out(value)
        if not isinstance(value, dict) or not isinstance(value.get("prune"), dict):
            return value
        value, prune = {**value}, {**value["prune"]}
        fixed = prune.get("order") == "alternating" or bool({"sigma_neuron", "sigma_layer"} & set(prune))
        value.setdefault("budget", "equal" if fixed else "damage")
        if value["budget"] == "equal":
            prune.setdefault("rounds", None)
        methods = value["recover"] if isinstance(value.get("recover"), list) else []
        if any(isinstance(m, dict) and m.get("type") == "grpo" for m in methods):
            value.setdefault("do_no_harm", False)
        if value.get("compensate") == "none" and isinstance(value.get("score", {}), dict):
            value["score"] = {"criterion": "contribution", **value.get("score", {})}
        return {**value, "prune": prune}

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        if blocks := {*self.prune.cut, *(self.prune.axes or ())} & set(in_blocks()):
            blockwise(self.score.criterion, sorted(blocks))
            if self.stop_at:
                raise ValueError(f"stop_at searches among neurons and layers: leave {min(blocks)} to runs without it")
        if self.prune.vocabulary and any(m.type == "distill" and m.teacher for m in self.recover):
            raise ValueError(
                "this teacher has another vocabulary than a model with fewer tokens: leave out recover's teacher (then "
                "the original with fewer tokens teaches), or prune.vocabulary"
            )
        if self.probed and self.prune.by_threshold:
            raise ValueError("thresholds decide the steps: leave out budget: damage")
        if self.budget == "damage" and self.prune.order == "alternating":
            raise ValueError("budget: damage does not go with order: alternating, only with the other orders")
        if self.prune.rounds == "auto" and not self.probed:
            raise ValueError("rounds: auto needs budget: damage, which predicts the damage")
        late = [m.type for m in self.recover if m.when == "last"]
        if late and len(late) == len(self.recover):
            raise ValueError("when: last leaves the other rounds without recovery: one method must run in every round")
        if late and (self.prune.by_threshold or self.stop):
            raise ValueError("when: last needs a round that is known to be the last: a target, and no keep (stop_at)")
        if self.do_no_harm and any(m.type == "grpo" for m in self.recover):
            raise ValueError(
                "do_no_harm judges by the held-out loss, which grpo does not aim at: leave one of them out"
            )
        check_traces(self.data, self.score.data, self.recover, self.protect.data if self.protect else ())
        if self.within and (self.stop or self.control != "none" or self.prune.by_threshold):
            raise ValueError(
                "a budget of time goes neither with keep (stop_at), nor with a control, nor with thresholds"
            )
        if self.prune.ladder and self.stop_at and self.evaluate.judged is None:
            raise ValueError("to recommend a rung by what it keeps needs a task with a verifier under evaluate")
        if self.model in self.evaluate.rivals:
            raise ValueError(f"the rival {self.model} is the model itself, which is measured in any case")
        if self.stop_at and self.stop_at.task is None and self.evaluate.judged is None:
            raise ValueError(
                "keep (stop_at) needs problems to decide with: a task with a verifier under evaluate, or stop_at.task"
            )
        return self

    @field_validator("model")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the model has no name")
        return value

    @classmethod
    def parse(cls, value: Any, where: str = "recipe") -> Recipe:
        """Validate a mapping (which may say `extends`); RecipeError names the first bad key and what is valid."""
        try:
            return cls.model_validate(with_base(value, where, _as_written))
        except ValidationError as e:
            raise explain(e, where, cls) from None

    @classmethod
    def read(cls, ref: str | Path) -> Recipe:
        """Read a YAML file, or a shipped recipe by its name (`demo`)."""
        return cls.parse(recipe_mapping(ref), str(recipe_file(ref)))

    def write(self, path: Path) -> None:
        """Write fully resolved YAML, atomically."""
        with replacing(path) as tmp:
            tmp.write_text(dump_yaml(self.model_dump(mode="json")), encoding="utf-8")

    def changed(self, **values: Any) -> Recipe:
        """A copy with other values of top-level fields."""
        return self.model_copy(update=values)


def recipe_file(ref: str | Path) -> Path:
    """The YAML file of a recipe: a path, or the name of a shipped one."""
    path = shipped().get(str(ref), Path(ref))
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(ref), shipped(), cutoff=0.7)
    if path.suffix in (".yaml", ".yml") or ("/" in str(ref) and not near):
        raise MissingPath("no such recipe file", value=str(ref), fix="check the path, or use: " + ", ".join(shipped()))
    raise UnknownName("recipe", str(ref), shipped())


def recipe_mapping(ref: str | Path) -> dict[str, Any]:
    """A recipe as written, with what it extends; not validated."""
    found: dict[str, Any] = with_base(_as_written(ref), str(ref), _as_written)
    return found


def _as_written(ref: str | Path) -> dict[str, Any]:
    return read_mapping(recipe_file(ref), "recipe")


def shipped() -> dict[str, Path]:
    """Recipes inside the package: name (`demo`, `paper/gemma2-9b`) -> file."""
    root = Path(str(importlib.resources.files("prunetune"))) / "recipe" / "shipped"
    return {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}
