"""What the options of `run` and `init` ask for, as the mapping of a recipe; the recipe's own rules come after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunetune.cli.options import judged_by, parse_task
from prunetune.cli.texts import own_columns, with_columns
from prunetune.errors import RecipeError
from prunetune.recipe.goals import seconds
from prunetune.recipe.said import changed, count, ladder, parse_data, share, target

USAGE = "prunetune run --model M --data D --target 0.6 --out RUN"


@dataclass(frozen=True)
class Asked:
    """The options, as typed. Whatever is None or empty was not said."""

    recipe: str | None = None
    model: str | None = None
    data: Sequence[str] = ()
    target: str | None = None
    ladder: str | None = None
    step: float | None = None
    tokens: str | None = None
    keep: str | None = None
    budget: str | None = None
    vocabulary: str | None = None
    tasks: Sequence[str] = ()
    rivals: Sequence[str] = ()
    verifier: str | None = None
    n: int | None = None
    seed: int | None = None
    device: str | None = None
    launcher: str | None = None
    sets: Sequence[str] = ()
    columns: str | None = None
    chat: bool = False

    @property
    def changes(self) -> bool:
        """Whether the recipe of that name is run with something changed."""
        said = (self.target, self.ladder, self.keep, self.budget, self.vocabulary, self.step, self.tokens, self.seed)
        return any(s is not None for s in said) or bool(self.data or self.sets or self.chat)


def mapping_of(asked: Asked) -> dict[str, Any]:
    """The recipe that is asked for, not yet validated.

    Raises:
        RecipeError: Neither or both of recipe and model, or an option that cannot be understood.
    """
    from prunetune.recipe.schema import recipe_mapping

    if asked.recipe is not None and asked.model is not None:
        raise RecipeError("give either a recipe or --model", valid=f"prunetune run RECIPE, or {USAGE}")
    if asked.recipe is not None:
        value = recipe_mapping(asked.recipe)
    elif asked.model is None:
        raise RecipeError("give either a recipe or --model", valid=f"prunetune run RECIPE, or {USAGE}")
    elif not asked.data or (asked.target, asked.ladder, asked.keep) == (None,) * 3:
        raise RecipeError("--model needs --data and --target (or --ladder, or --keep) too", fix=USAGE)
    else:
        value = {"model": asked.model}
    value = _with_cut(value, asked)
    value = _with_tasks(value, asked)
    if asked.tokens is not None:
        value["recover"] = _budget(value.get("recover"), count(asked.tokens, "--tokens"))
    if asked.budget is not None:
        value = _within(value, asked)
    value |= {k: v for k in ("seed", "device", "launcher") if (v := getattr(asked, k)) is not None}
    if asked.chat:
        value["prompt"] = {**(value.get("prompt") or {}), "template": "chat"}
    for said in asked.sets:
        value = changed(value, said)
    if (
        asked.keep is not None
        and not (value.get("evaluate") or {}).get("tasks")
        and "task" not in value.get("stop_at", {})
    ):
        raise RecipeError(
            "--keep needs a task: it is a share of the accuracy on its problems",
            value=asked.keep,
            fix="--task gsm8k, or your own rows: --task mine=rows.jsonl --verifier number",
        )
    return value


def _with_cut(value: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Data, target and step."""
    value = dict(value)
    if asked.data:
        value["data"] = [with_columns(parse_data(d, asked.seed or 0), asked.columns) for d in asked.data]
    elif asked.columns is not None:
        raise RecipeError("--columns is for --data", value=asked.columns, fix="in a recipe: data: [{…, columns: {…}}]")
    prune = dict(value["prune"]) if isinstance(value.get("prune"), dict) else {}
    if asked.target is not None:
        prune["target"] = target(asked.target)
    if asked.step is not None:
        prune |= {"step": asked.step, "rounds": None}
    if asked.ladder is not None:  # a recipe's own target gives way
        value = {**value, "ladder": ladder(asked.ladder)}
        prune = {k: v for k, v in prune.items() if k != "ladder" and (k != "target" or asked.target is not None)}
        value = {k: v for k, v in value.items() if k != "prune"} if not prune else value
    if asked.vocabulary is not None:
        if asked.vocabulary != "task" and not (asked.vocabulary.isdecimal() and int(asked.vocabulary) > 0):
            raise RecipeError(
                "--vocabulary is task, or how many tokens stay", value=asked.vocabulary, valid="task, 32768"
            )
        prune["vocabulary"] = asked.vocabulary
    if asked.keep is not None:
        return _with_goal(value, prune, asked)
    return {**value, "prune": prune} if prune else value


def _with_goal(value: dict[str, Any], prune: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """`--keep`: as small as possible, so that a recipe's own target and its control give way."""
    wanted = share(str(asked.keep), "--keep")
    if asked.target is None:
        prune.pop("target", None)
    value = {k: v for k, v in value.items() if k not in ("prune", "control")} | ({"prune": prune} if prune else {})
    if value.get("stop_at") or isinstance(value.get("keep"), str):  # models that stay on disk have the short name
        return {**value, "stop_at": {**(value.get("stop_at") or {}), "accuracy": wanted}}
    return {**value, "keep": wanted}


def _within(value: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """`--budget`: the time of the whole run, so that a recipe's own control gives way."""
    wanted = seconds(str(asked.budget))
    if isinstance(wanted, str) or wanted <= 0:
        raise RecipeError("--budget must be a time", value=asked.budget, valid="2h, 90min, 1h30m, 600s")
    if asked.tokens is not None:
        raise RecipeError(
            "give either --budget or --tokens: a budget of time decides on the tokens", value=asked.tokens
        )
    value = {k: v for k, v in value.items() if k not in ("control", "within")}
    short = "within" if value.get("budget") in ("equal", "damage") else "budget"
    return {**value, short: asked.budget}


def _with_tasks(value: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Tasks, their verifier, on how many problems, and who else is asked."""
    if asked.verifier and not asked.tasks:
        raise RecipeError("--verifier needs a task to judge", value=asked.verifier, fix="--task mine=rows.jsonl")
    evaluate = dict(value["evaluate"]) if isinstance(value.get("evaluate"), dict) else {}
    if asked.tasks:
        evaluate["tasks"] = judged_by([own_columns(parse_task(t), asked.columns) for t in asked.tasks], asked.verifier)
    if asked.n is not None:
        tasks = evaluate.get("tasks") or []
        if not tasks:
            raise RecipeError(
                "--n needs a task to measure", value=asked.n, fix="--task gsm8k, or --task mine=rows.jsonl"
            )
        evaluate["tasks"] = [{**t, "n": asked.n} if isinstance(t, dict) else t for t in tasks]
    if asked.rivals:
        evaluate["rivals"] = list(dict.fromkeys(asked.rivals))
    return {**value, "evaluate": evaluate} if evaluate else value


def _budget(methods: Any, tokens: int) -> list[Any]:
    """The recovery methods with a budget of tokens; only one of them may be meant."""
    if not methods:
        return [{"type": "cpt", "tokens": tokens}]
    if not isinstance(methods, list) or len(methods) != 1 or not isinstance(methods[0], dict):
        raise RecipeError(
            "--tokens cannot tell which recovery method is meant",
            value=[m.get("type") if isinstance(m, dict) else m for m in methods]
            if isinstance(methods, list)
            else methods,
            fix=f"--set recover.0.tokens={tokens}",
        )
    if methods[0].get("type") == "grpo":
        raise RecipeError(
            "a budget of grpo is in prompts, not in tokens", value=tokens, fix="--set recover.0.samples=12000"
        )
    return [{**methods[0], "tokens": tokens, "samples": None}]
