"""Cost per question as the paper averages it (Table 1): each question's own prompt and answer lengths, prefill apart.

    cost = question_cost(cost_of(config), read_samples(stage, "gsm8k").values())
    cost.prefill, cost.decode, cost.total, cost.per_new_token

The head is counted, the embedding look-up is not (see `cost.py`). FLOPs per generated token stand beside FLOPs per
question, so that a model that merely answers shorter is not called cheaper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prunetune.common.files import read_json
from prunetune.evaluation.samples import Sample
from prunetune.models.cost import Cost, cost_of
from prunetune.models.families.wrappers import language_of
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import StageRecord


@dataclass(frozen=True)
class QuestionCost:
    """Means over the questions of one task: lengths in tokens, work in FLOPs."""

    n: int
    prompt_tokens: float
    new_tokens: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """FLOPs of a question."""
        return self.prefill + self.decode

    @property
    def per_new_token(self) -> float:
        """FLOPs of a question divided by the tokens generated."""
        return self.total / self.new_tokens


def question_cost(cost: Cost, samples: Iterable[Sample]) -> QuestionCost | None:
    """Mean cost of the questions; None if there is none, or one whose lengths were not recorded.

    Args:
        cost: Of the model that answered.
        samples: Its answered questions; an empty answer counts as one new token, since the prefill yields one.
    """
    lengths: Counter[tuple[int, int]] = Counter()
    for s in samples:
        if s.prompt_tokens is None or s.new_tokens is None:
            return None
        lengths[(s.prompt_tokens, max(1, s.new_tokens))] += 1
    n = sum(lengths.values())
    if not n:
        return None
    work = {k: cost.flops(*k) for k in lengths}

    def mean(total: int) -> float:
        return total / n

    return QuestionCost(
        n=n,
        prompt_tokens=mean(sum(c * k[0] for k, c in lengths.items())),
        new_tokens=mean(sum(c * k[1] for k, c in lengths.items())),
        prefill=mean(sum(c * work[k].prefill for k, c in lengths.items())),
        decode=mean(sum(c * work[k].decode for k, c in lengths.items())),
    )


def stage_cost(run: RunRecord, stage: StageRecord) -> Cost | None:
    """The cost model of a stage: `final/config.json` at the stage's shape.

    None where that config is not there, or does not give the parameters that the stage recorded (another model).
    """
    config = run.path / "final" / "config.json"
    if not config.is_file() or stage.depth is None or stage.width is None:
        return None
    cost = cost_of(language_of(read_json(config)), shape=stage.counts)
    return cost if cost.params == stage.params else None
