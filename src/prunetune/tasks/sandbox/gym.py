"""reasoning-gym's own scorers, kept from executing answers, and from full marks for wrong ones.

Nine scorers pass the answer to `eval` or to sympy's parser, which evaluates it; in the same process they hold the right
answer and give the mark, so an answer that runs there could give itself any mark. Here none runs: only a literal, plain
arithmetic, or an expression of known functions reaches such a scorer, written out anew from its syntax tree.

A few scorers give full marks to wrong answers (`CHECKS`); there, full marks need this module's consent.
"""

from __future__ import annotations

import ast
import cmath
import functools
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Entry = dict[str, Any]
Types = tuple[type, ...]
Form = Callable[[str, Entry], str | None]

OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
FUNCTIONS = frozenset({
    "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "exp", "log", "ln", "sqrt", "Abs", "sign", "erf", "erfi", "Ei", "li", "Si", "Ci", "gamma", "fresnels", "fresnelc",
})  # fmt: skip
CONSTANTS = frozenset({"C", "E", "pi", "I"})
NEAR = 0.01  # relative error of a probability that still counts as the same


def prepare() -> Any:
    """The data sets of this process: settings as JSON -> data set."""
    import reasoning_gym  # noqa: F401  # so that no child pays for the import
    import sympy  # noqa: F401

    from prunetune.data.generators import gym_dataset

    return functools.lru_cache(maxsize=8)(lambda key: gym_dataset(**json.loads(key)))


def warm(made: Any, job: dict[str, Any]) -> None:
    """Do once what every answer to a task needs: its data set, and a first scoring, of the right answer."""
    key = _key(job)
    known = made.cache_info().misses
    dataset = made(key)
    if made.cache_info().misses > known:
        entry = _entry(dataset, job)
        dataset.score_answer(entry["answer"], entry)


def grade(made: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The score of an answer, 0 to 1. The job: `dataset`, `index` or `entry`, `question`, `answer`."""
    dataset = made(_key(job))
    entry = _entry(dataset, job)
    if entry["question"] != job["question"]:
        return {"error": "this reasoning-gym data set does not make the same problem twice"}
    name, answer = job["dataset"]["name"], str(job["answer"])
    plain = FORMS[name](answer, entry) if name in FORMS else answer
    if plain is None:
        return {"score": 0.0}
    score = float(dataset.score_answer(plain, entry))
    if score >= 1.0 and name in CHECKS and not CHECKS[name](plain, entry):
        score = 0.0
    return {"score": score}


def plain_entry(entry: Entry) -> Entry | None:
    """What a scorer reads of an entry, where it is JSON; None where the scorer's process must make the entry again."""
    found: Entry = {key: entry[key] for key in ("question", "answer", "metadata") if key in entry}
    try:
        return found if json.loads(json.dumps(found)) == found else None
    except (TypeError, ValueError):
        return None


def _key(job: dict[str, Any]) -> str:
    return json.dumps(job["dataset"], sort_keys=True)


def _entry(dataset: Any, job: dict[str, Any]) -> Entry:
    held: Entry | None = job.get("entry")
    return dataset[job["index"]] if held is None else held


# ---------------------------------------------------------------------------- what may reach a scorer that evaluates it


def literal(answer: str, entry: Entry) -> str | None:
    """Text that is no Python, a single name, or a literal: evaluated, it does nothing."""
    text = answer.strip()
    try:
        body = ast.parse(text, mode="eval").body
    except SyntaxError:
        return answer  # evaluating it fails likewise
    except (ValueError, MemoryError, RecursionError):
        return None
    if isinstance(body, ast.Name):
        return answer
    try:
        ast.literal_eval(body)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return answer


def arithmetic(answer: str, entry: Entry) -> str | None:
    """Whole numbers with + - * / and brackets."""
    return _written(answer, (*OPERATORS,), frozenset(), frozenset(), (int,))


def polynomial(answer: str, entry: Entry) -> str | None:
    """Numbers and the problem's variables with + - * / ** and brackets. No functions: one of them could do the work."""
    names = frozenset(map(str, entry["metadata"]["variables"]))
    return _written(answer, (*OPERATORS, ast.Pow), names, frozenset(), (int, float))


def integral(answer: str, entry: Entry) -> str | None:
    """As a polynomial, and elementary functions. Not `Integral` or `integrate`: those are the question."""
    names = CONSTANTS | {str(entry["metadata"]["variable"])}
    return _written(answer, (*OPERATORS, ast.Pow), names, FUNCTIONS, (int, float))


FORMS: dict[str, Form] = {
    "binary_matrix": literal,
    "countdown": arithmetic,
    "intermediate_integration": integral,
    "n_queens": literal,
    "polynomial_multiplication": polynomial,
    "puzzle24": arithmetic,
    "simple_integration": integral,
    "spiral_matrix": literal,
    "string_insertion": literal,
}


def _written(
    answer: str,
    operators: Types,
    names: frozenset[str],
    functions: frozenset[str],
    numbers: Types,
) -> str | None:
    """The expression, written from its syntax tree, if it holds nothing else than these."""
    try:
        tree = ast.parse(answer.strip(), mode="eval")
        called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if not _known(node, operators, functions if id(node) in called else names, numbers):
                return None
        return ast.unparse(tree)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _known(node: ast.AST, operators: Types, names: frozenset[str], numbers: Types) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in numbers
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and not node.keywords
    around = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.UAdd, ast.USub, ast.Load)
    return isinstance(node, (*around, *operators))


# ---------------------------------------------------------------------------------- where full marks need a second look


def _reaches(answer: str, numbers: list[int], target: int) -> bool:
    """Whether arithmetic on these very numbers, each once, gives exactly the target."""
    tree = ast.parse(answer, mode="eval").body
    used = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    try:
        return sorted(used) == sorted(numbers) and _value(tree) == target  # type: ignore[type-var]
    except ZeroDivisionError:
        return False


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(int(node.value))  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand) if isinstance(node.op, ast.USub) else _value(node.operand)
    if not isinstance(node, ast.BinOp):
        raise ValueError("no arithmetic")
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    return left * right if isinstance(node.op, ast.Mult) else left / right


def _countdown(answer: str, entry: Entry) -> bool:  # its scorer forgives one part in 100,000
    return _reaches(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _puzzle24(answer: str, entry: Entry) -> bool:  # its scorer cuts 24.9 to 24, and takes any four numbers
    return _reaches(answer, entry["metadata"]["numbers"], 24)


def _halting(answer: str, entry: Entry) -> bool:  # its scorer takes any text for "True", and every problem for one
    return answer.strip().casefold() == str(entry["answer"]).casefold()


def _complex(answer: str, entry: Entry) -> bool:  # its scorer takes nan for the right number
    from reasoning_gym.algebra.complex_arithmetic import ComplexArithmeticDataset

    return cmath.isfinite(ComplexArithmeticDataset.parse_string_to_complex(answer))


def _coin_flip(answer: str, entry: Entry) -> bool:  # its scorer takes 0 for every small probability
    right = Fraction(str(entry["answer"]).replace(",", ""))
    return abs(Fraction(answer.replace(",", "")) - right) <= NEAR * right


CHECKS: dict[str, Callable[[str, Entry], bool]] = {
    "coin_flip": _coin_flip,
    "complex_arithmetic": _complex,
    "countdown": _countdown,
    "game_of_life_halting": _halting,
    "puzzle24": _puzzle24,
}
