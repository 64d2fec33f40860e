"""A recipe as a person would write it: the keys that were said, each with a word, and the next ones as comments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunetune.common.yaml import dump_yaml

if TYPE_CHECKING:
    from prunetune.recipe.schema import Recipe

WORDS = {
    "model": "a hub name, a folder, a .gguf file, package:NAME, or demo",
    "data": "reasoning sequences (question and worked answer), for scoring and for recovery",
    "prune": "target: a share of the parameters, a count, 4GB, 2x (as fast), or {width: 7336, depth: 30}",
    "ladder": "every share is a finished model of its own: RUN/final-0.8; the last is the target",
    "keep": "as small as keeps this share of the original's accuracy: a search",
    "budget": "time of the whole run: what fits is measured and told first",
    "recover": "methods of a round, one after another: cpt, sft, distill, grpo; tokens of the whole run",
    "evaluate": "what is measured: the original, every round and the result, on the same problems",
}
"""What a key is, in one line."""


def short(value: dict[str, Any], recipe: Recipe) -> str:
    """The YAML text.

    Args:
        value: The keys that were said.
        recipe: The same, with its defaults: told as comments.
    """
    lines = ["# A prunetune recipe. `prunetune keys` tells every key; what is not here has the recommended setting."]
    for key, said in value.items():
        lines += [f"# {WORDS[key]}"] if key in WORDS else []
        lines += dump_yaml({key: said}).rstrip().splitlines()
    if "recover" not in value:
        method = recipe.recover[0]
        lines += [f"# {WORDS['recover']}", f"# recover: [{{type: {method.type}, tokens: {method.tokens}}}]"]
    if "evaluate" not in value:
        lines += [f"# {WORDS['evaluate']}", "# evaluate: {tasks: [{name: gsm8k, n: 500}]}"]
    lines += ["# extends: paper       # the paper's settings in place of the recommended ones"]
    return "\n".join(lines) + "\n"
