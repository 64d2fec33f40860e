"""What a run's figures say, in a word: good, not good, or cannot tell; why; what it cost; what to do now. Pure.

    said = conclude(run)
    said.word, said.why            # "cannot tell", "the original solves 1 of 16 problems of gsm8k, which ..."

The word comes from intervals, never from a figure alone: good is what keeps `GOOD` of the original's accuracy with all
of its 95 % interval, not good is what keeps less with all of it. Whatever forbids to read the figures so (an original
that solves next to nothing, answers cut at the length limit, one optimiser step) is said in place of a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prunetune.common import units as human
from prunetune.common.stats import kept_interval, kept_interval_apart, wilson
from prunetune.report.pairs import read_samples, side_by_side
from prunetune.report.speed import speedup
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord, StageRecord
from prunetune.runs.summary import Timings

GOOD = 0.9
"""Share of the original's accuracy that a good result keeps."""
CHANCE = 0.05
"""An original whose accuracy may be below this has nothing to lose that could be measured."""
CUT = 0.1
"""Share of answers cut at the length limit from which on they decide the figure."""

Word = Literal["good", "not good", "cannot tell"]


@dataclass(frozen=True)
class Conclusion:
    """What stands first on the console and in a report.

    Attributes:
        word: good, not good, or cannot tell.
        why: The figures that it rests on, or what is in their way.
        cost: Wall time and tokens.
        slow: What took most of the time; empty if no times were recorded.
        then: The next command.
        size: What was asked for, and what was reached; empty where no target was set.
        speed: Measured speed-ups of a generated token; empty where none was measured.
    """

    word: Word
    why: str
    cost: str
    slow: str
    then: str
    size: str = ""
    speed: str = ""

    def lines(self) -> list[str]:
        """One line a thing that is known, with its name before it."""
        named = (
            ("result", f"{self.word}: {self.why}"),
            ("size", self.size),
            ("speed", self.speed),
            ("cost", self.cost),
            ("slow", self.slow),
            ("next", self.then),
        )
        return [f"{name:<8}{text}" for name, text in named if text]


def conclude(run: RunRecord) -> Conclusion | None:
    """The conclusion of a run; None while neither the original nor a smaller model is measured."""
    original, final = run.original, run.final
    if original is None or final is None:
        return None
    word, why, then = _judge(run, original, final)
    return Conclusion(
        word=word, why=why, cost=_cost(run), slow=_slow(run), then=then, size=_size(run), speed=_speed(run)
    )


def doubts(evals: Sequence[EvalRecord]) -> list[str]:
    """Why an original's figures can tell nothing of what is lost later, task by task; for a word before any work."""
    found = []
    for e in evals:
        if not e.is_share or not e.n:
            continue
        if _near_chance(e):
            found.append(f"the original solves {_counts(e)} problems of {e.task} {_range(e)}: little can be lost")
        if _share_cut(e) > 0.5:
            found.append(f"{e.truncated:,} of the original's {e.n:,} answers to {e.task} ran into the length limit")
    return found


@dataclass(frozen=True)
class Kept:
    """How much of a task's accuracy is kept: 95 % interval; `high` None: no bound, the original may be at zero."""

    task: str
    value: float | None
    low: float
    high: float | None

    def text(self) -> str:
        """The share with its interval: 92.1 % (85.0 to 99.6)."""
        if self.value is None or self.high is None:
            return f"an unknown share of the accuracy on {self.task}"
        return f"{human.percent(self.value)} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def kept(run: RunRecord, task: str) -> Kept | None:
    """Of a task whose figure is a share of right answers: what the final model keeps of it, question by question.

    None if it was not measured before and after.
    """
    before, after = (s.eval_of(task) if s else None for s in (run.original, run.final))
    if before is None or after is None or not after.is_share or run.original is None or run.final is None:
        return None
    value = after.value / before.value if before.value else None
    pairs = side_by_side(task, read_samples(run.folder(run.original), task), read_samples(run.folder(run.final), task))
    if pairs is not None:
        return Kept(task, value, *kept_interval(pairs.counts))
    if before.n and after.n:
        return Kept(task, value, *kept_interval_apart((_right(before), before.n), (_right(after), after.n)))
    return Kept(task, value, 0.0, None)


# ---------------------------------------------------------------------------------------------------------- the word


def _judge(run: RunRecord, original: StageRecord, final: StageRecord) -> tuple[Word, str, str]:
    """(the word, why, the next command)."""
    promise = run.summary.promise
    if final is original:
        return "not good", promise.why if promise is not None else "nothing was removed", _larger(run)
    shares = [k for task in run.shares if (k := kept(run, task)) is not None]
    if not shares:
        return "cannot tell", "no task with right and wrong answers was measured", _again(run, _a_task(run))
    for k in shares:
        if (found := _hindrance(run, original.eval_of(k.task))) is not None:
            return "cannot tell", *found
    check = f"prunetune check {run.path}"
    if promise is not None and promise.kept:
        return "good", f"keep {human.percent(promise.wanted)}: kept; {promise.why}", check
    told = " and ".join(f"{k.text()} of the accuracy on {k.task}" for k in shares) + " kept"
    if all(k.low >= GOOD for k in shares):
        return "good", told, check
    if (cut := _cut(run, final)) is not None:
        return "cannot tell", *cut
    if sum(t.steps or 0 for s in run.accepted for t in s.tune) == 1:
        more = f"--tokens {10 * (run.recovery_tokens() or 100_000)}"
        return "cannot tell", f"{told}, but recovery was one optimiser step", _again(run, more)
    if any(k.high is not None and k.high < GOOD for k in shares):
        return "not good", f"{told}; good is {human.percent(GOOD, 0)} or more", _larger(run)
    n, task = min((e.n or 0, k.task) for k in shares if (e := final.eval_of(k.task)) is not None)
    why = f"{told}: {n:,} problems are too few to tell whether {human.percent(GOOD, 0)} is"
    return "cannot tell", why, _more(run, task, max(4 * n, 100))


def _hindrance(run: RunRecord, before: EvalRecord | None) -> tuple[str, str] | None:
    """Why the original's figure on a task says nothing of what was lost, and the next command."""
    if before is None or not before.n:
        return None
    if _share_cut(before) > CUT and before.value < 0.5:
        why = f"{before.truncated:,} of the original's {before.n:,} answers to {before.task} ran into the length limit"
        return why, _longer(run, before)
    if _near_chance(before):
        why = f"the original solves {_counts(before)} problems of {before.task} {_range(before)}: little to keep"
        return why, _otherwise(run, before.task)
    return None


def _cut(run: RunRecord, final: StageRecord) -> tuple[str, str] | None:
    """The same for the final model's answers that the length limit cut."""
    for e in final.evals:
        if e.is_share and _share_cut(e) > CUT:
            why = f"{e.truncated:,} of {e.n:,} answers to {e.task} ran into the length limit, and count as they stand"
            return why, _longer(run, e)
    return None


def _again(run: RunRecord, change: str) -> str:
    """The same run with one thing changed, in a folder of its own."""
    return f"prunetune run {run.path / 'recipe.yaml'} --out {run.path}-2 {change}"


def _a_task(run: RunRecord) -> str:
    """A task that fits the run's data, as an option."""
    given = run.recipe.get("data")
    data = [d for d in given if isinstance(d, dict)] if isinstance(given, list) else []
    names = {str(d.get("name") or d.get("type")) for d in data if d.get("type") in ("preset", "generator", "demo")}
    known = sorted(names & {"gsm8k", "gsm_symbolic", "demo"})
    return f"--task {known[0]}" if known else "--task mine=QUESTIONS.csv --verifier number"


def _otherwise(run: RunRecord, task: str) -> str:
    """What an original that solves nothing is tried with: its chat template; else a look at what it answers."""
    prompt = run.recipe.get("prompt")
    plain = not isinstance(prompt, dict) or prompt.get("template", "plain") == "plain"
    if plain and _has_chat_template(run):
        return _again(run, "--set prompt.template=chat")
    return f"head -n 3 {run.path / 'original' / 'eval' / f'{task}.jsonl'}"


def _has_chat_template(run: RunRecord) -> bool:
    """Whether the model that was made has one: then the original has."""
    final = run.path / "final"
    if (final / "chat_template.jinja").is_file():
        return True
    config = final / "tokenizer_config.json"
    return config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")


def _more(run: RunRecord, task: str, n: int) -> str:
    """The same with more problems; of a file that was asked whole, with another one."""
    evaluate = run.recipe.get("evaluate")
    tasks = evaluate.get("tasks") or () if isinstance(evaluate, dict) else ()
    asked = next((t for t in tasks if isinstance(t, dict) and t.get("name") == task), {})
    if asked.get("path") is not None and asked.get("n") is None:
        judged = f" --verifier {asked['verifier']}" if asked.get("verifier") else ""
        return _again(run, f"--task {task}=MORE-QUESTIONS.csv{judged}")
    return _again(run, f"--n {n}")


def _longer(run: RunRecord, e: EvalRecord) -> str:
    limit = max(256, 2 * 64 * math.ceil((e.new_tokens or 0) / 64))
    return _again(run, f"--set evaluate.tasks.{run.tasks.index(e.task)}.max_new_tokens={limit}")


def _larger(run: RunRecord) -> str:
    """Half of what was removed; of a ladder the rung that keeps more."""
    best = run.summary.recommended
    if best is not None and best.folder is not None:
        return f"prunetune check {run.path / best.folder}"
    smallest = min((s.params for s in run.stages if s.params), default=None)
    share = human.ratio(smallest, run.original.params if run.original else None) or 0.8
    return _again(run, f"--target {min(0.95, round((1 + share) / 2, 2)):g}")


def _near_chance(e: EvalRecord) -> bool:
    return bool(e.n) and wilson(_right(e), e.n or 0)[0] < CHANCE


def _share_cut(e: EvalRecord) -> float:
    return (e.truncated or 0) / e.n if e.n else 0.0


def _right(e: EvalRecord) -> int:
    return e.correct if e.correct is not None else round(e.value * (e.n or 0))


def _counts(e: EvalRecord) -> str:
    return f"{_right(e):,} of {e.n:,}"


def _range(e: EvalRecord) -> str:
    low, high = wilson(_right(e), e.n or 0)
    return f"({100 * low:.1f} to {100 * high:.1f} %)"


# ------------------------------------------------------------------------------------------------------ what it cost


def _cost(run: RunRecord) -> str:
    seconds, tokens = sum(run.seconds().values()), run.recovery_tokens()
    said = [human.duration(seconds) + _beside(run)] if seconds else []
    if tokens is not None:
        said.append(f"{human.count(tokens)} recovery tokens{_of_planned(run, tokens)}")
    if (
        run.original is not None
        and run.final is not None
        and (share := human.ratio(run.final.params, run.original.params))
    ):
        said.append(f"{human.percent(share)} of the parameters left")
    return ", ".join(said)


def _beside(run: RunRecord) -> str:
    """What the control took, which is not in the time of the run itself."""
    taken = sum(sum(s.seconds.values()) for s in run.control.stages) if run.control is not None else 0.0
    timed = run.control.summary.seconds.get("latency", 0.0) if run.control is not None else 0.0
    return f" (and {human.duration(taken + timed)} for the control)" if taken + timed else ""


def _of_planned(run: RunRecord, tokens: int) -> str:
    """Beside what was planned, where the time left clearly less."""
    planned = run.summary.planned_tokens
    return f" of {human.count(planned)} planned (the time was up)" if planned and tokens < 0.8 * planned else ""


def _size(run: RunRecord) -> str:
    """What was asked for beside what was reached, in the unit that was asked in."""
    asked, reached = run.summary.asked, run.summary.reached
    if asked is None:
        return ""
    if reached is None:
        return f"asked {_target(asked)}; what was reached was not measured"
    return f"asked {_target(asked)}, reached {_target(reached)}"


def _speed(run: RunRecord) -> str:
    """How many times as fast a token is generated, one answer at a time and several, each with its interval."""
    said = [(speedup(run, "decode"), "a token, one answer at a time")]
    batched = (run.summary.latency.batched if run.summary.latency is not None else None) or Timings()
    many = batched.final.batch if batched.final is not None else None
    said.append((speedup(run, "throughput"), f"with {many} at a time" if many else "with several at a time"))
    return ", ".join(f"{found.text()} {of}" for found, of in said if found is not None)


def _target(value: float | int | str | dict[str, int | None]) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items() if count is not None)
    if isinstance(value, str):
        return value
    return f"{human.percent(value)} of the parameters" if value <= 1 else f"{human.count(value)} parameters"


def _slow(run: RunRecord) -> str:
    """The two actions that took most of the time."""
    times = {action: t for action, t in run.seconds().items() if t > 0}
    total = sum(times.values())
    if not total:
        return ""
    longest = sorted(times, key=lambda a: -times[a])[:2]
    return ", ".join(f"{a} {human.duration(times[a])} ({human.percent(times[a] / total, 0)})" for a in longest)
