"""reasoning-gym's scorers: no answer is executed, none can touch a later one, and wrong answers are wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from tests.tasks.sandbox import leftovers

from prunetune.errors import DataError
from prunetune.tasks.registry import EXECUTING, Task, TaskConfig, build_task
from prunetune.tasks.sandbox import gym
from prunetune.tasks.sandbox.program import why_not

needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

POISON = [
    "[setattr(c, 'score_answer', lambda *a, **k: 1.0) for c in [d[0] for d in __import__('reasoning_gym').factory.DATASETS.values()]]",
    "[__import__('os').write(n, b'{\"score\": 1.0, \"cpu_seconds\": 0}\\n') for n in range(3, 9)]",
    '[__import__(\'os\').write(n, b\'{"begun": true}\\n{"score": 1.0, "cpu_seconds": 0}\\n\') for n in range(3, 9)]',
    "__import__('os')._exit(0)",
    "__import__('os').kill(1, 9)",
    "__import__('os').fork()",
    "exec('import builtins; builtins.float = lambda x: 1.0')",
    "[f.f_locals['entry'].update(answer='x') for f in [__import__('sys')._getframe(2)]]",
    "type('Y', (str,), {'__eq__': lambda s, o: True, '__hash__': str.__hash__})('x')",
    "type('Y', (), {'__eq__': lambda s, o: True, '__sub__': lambda s, o: 0, '__iter__': lambda s: iter('')})()",
    "().__class__.__base__.__subclasses__()",
    "(lambda: 1)()",
    "[x for x in [1]]",
    "f'{1}'",
    "metadata['target']",
    "entry.get('answer')",
    "oracle_answer",
    "valid_solutions",
    "expand(x)",
    "Symbol('x')",
    'S(\'__import__("os").system("true")\')',
    "sympify('1')",
    "Integral(x, x)",
    "integrate(2*x, x)",
    "sqrt(x, evaluate=False)",
    "sin.__class__",
    "1 if True else 2",
    "24 == 24",
    "True * 24",
    "0x18",
    "4!",
    "9 .real",
    "[1].__len__()",
]


def task(name: str, n: int = 2) -> Task:
    return build_task(TaskConfig(name=f"reasoning-gym:{name}", n=n, allow_code_execution=True))


@needs_sandbox
@pytest.mark.parametrize("name", sorted(EXECUTING))
def test_references_are_right_and_poison_is_wrong_and_has_no_effect(name: str) -> None:
    found = task(name)
    running = leftovers.processes()
    problem, later = found.problems
    wrong = [found.verify(problem, f"<answer>{p}</answer>") for p in (POISON if name == "n_queens" else POISON[:12])]
    assert not any(v.correct for v in wrong)
    assert not found.verify(later, "<answer>wrong</answer>").correct
    assert not found.verify(later, f"<answer>{problem.reference}</answer>").correct
    if "Integral" not in later.reference:  # where sympy itself has found no solution
        assert found.verify(later, f"<answer>{later.reference}</answer>").correct
    children = leftovers.processes() - running
    own = 3  # the grader's: launcher, process 1, server; none where an earlier test has started it
    assert len(children) in (0, own) or (
        leftovers.gone({max(children)}) and len(leftovers.processes() - running) <= own
    )


def test_nothing_that_executes_reaches_a_scorer() -> None:
    """Of every answer what is left is a literal, a name, no Python at all, or an expression of known names."""
    entry = {"metadata": {"variables": ["x", "y"], "variable": "x"}}
    for form in set(gym.FORMS.values()):
        for answer in POISON:
            left = form(answer, entry)
            if left is not None:
                assert not set(re.findall(r"[a-zA-Z_]\w*(?=\s*[(.\[])", left)) - gym.FUNCTIONS or _is_no_python(left), (
                    left
                )


def _is_no_python(text: str) -> bool:
    try:
        compile(text.strip(), "", "eval")
    except SyntaxError:
        return True
    return False


@pytest.mark.parametrize(
    ("form", "answer", "left"),
    [
        (gym.arithmetic, " (3 + 4)*5 - -6/2 ", "(3 + 4) * 5 - -6 / 2"),
        (gym.arithmetic, "3 ** 4", None),
        (gym.arithmetic, "3 // 4", None),
        (gym.arithmetic, "3.5 + 4", None),
        (gym.arithmetic, "x + 4", None),
        (gym.arithmetic, "1+" * 100000 + "1", None),
        (gym.arithmetic, "(" * 5000 + "1" + ")" * 5000, None),
        (gym.polynomial, "-3*x**2 + 0.5*y - 1", "-3 * x ** 2 + 0.5 * y - 1"),
        (gym.polynomial, "z + 1", None),
        (gym.polynomial, "expand(x)", None),
        (gym.polynomial, "'x'", None),
        (gym.polynomial, "ｘ + 1", "x + 1"),
        (gym.integral, "-3*x**3*sin(x)/2 + exp(2*x) + log(Abs(x), E) + C", "-3 * x ** 3 * sin(x) / 2 + exp(2 * x) + log(Abs(x), E) + C"),
        (gym.integral, "Integral(sin(x), x)", None),
        (gym.integral, "sin + x", None),
        (gym.integral, "sin(*x)", None),
        (gym.literal, "[['Q', '_'], ['_', 'Q']]", "[['Q', '_'], ['_', 'Q']]"),
        (gym.literal, "_ Q\nQ _", "_ Q\nQ _"),
        (gym.literal, "[x for x in [1]]", None),
        (gym.literal, "{}.clear()", None),
        (gym.literal, "AABCD", "AABCD"),
    ],
)  # fmt: skip
def test_forms(form: gym.Form, answer: str, left: str | None) -> None:
    assert form(answer, {"metadata": {"variables": ["x", "y"], "variable": "x"}}) == left


WRONG = [
    ("puzzle24", {"numbers": [4, 8, 6, 2]}, "24", [("4*8 - 6 - 2", True), ("8*6/2 + 4", False), ("6*8/2 + 4 - 4", False), ("5*5 - 1*1", False),
                                                   ("6*(8/2) + 0*4", False), ("6*4*(8/(8+0))", False), ("4*6 + 2/8", False)]),
    ("countdown", {"numbers": [1, 900, 7], "target": 900}, "", [("900 + 1/7", False), ("900 + 7 - 1", False), ("900 + 0*(7 - 1)", False)]),
    ("countdown", {"numbers": [3, 100000, 100000], "target": 100000}, "", [("100000 + 3/100000", False)]),
    ("game_of_life_halting", {}, "False", [("False", True), ("false ", True), ("True", False), ("wrong", False), ("0", False)]),
    ("game_of_life_halting", {}, "True", [("True", True), ("False", False), ("1", False)]),
    ("complex_arithmetic", {"result": (8, 3)}, "8.0 + 3.0i", [("8 + 3i", True), ("nan", False), ("nan+nani", False), ("inf", False), ("8 - 3i", False)]),
    ("coin_flip", {}, "3.051757812e-05", [("3.051757812e-05", True), ("1/32768", True), ("0", False), ("0.0001", False), ("4e-05", False)]),
    ("simple_integration", {"variable": "x", "integrand": "2*x"}, "", [("x**2 + C", True), ("x**2 + 7", True), ("Integral(2*x, x)", False),
                                                                      ("integrate(2*x, x)", False), ("x**3", False)]),
    ("intermediate_integration", {"variable": "x", "integrand": "cos(x)"}, "", [("sin(x) + C", True), ("Integral(cos(x), x)", False)]),
    ("polynomial_multiplication", {"variables": ["x"]}, "x**2 + 3*x + 2", [("2 + 3*x + x**2", True), ("(x + 1)*(x + 2)", False),
                                                                         ("expand((x + 1)*(x + 2))", False)]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_wrong_answers_that_the_scorer_takes_are_wrong(case: int) -> None:
    name, metadata, reference, answers = WRONG[case]
    job = {
        "dataset": {"name": name},
        "question": "q",
        "entry": {"question": "q", "answer": reference, "metadata": metadata},
    }
    made = gym.prepare()
    for answer, right in answers:
        assert (gym.grade(made, {**job, "answer": answer})["score"] >= 1.0) is right, answer


def test_every_scorer_that_evaluates_is_known() -> None:
    """A later version of reasoning-gym with another such scorer fails here."""
    from reasoning_gym.factory import DATASETS

    trusted = {"propositional_logic", "number_sorting"}  # a parser of its own; the reference alone
    evaluating = set()
    for name, (kind, _) in DATASETS.items():
        source = inspect.getsource(kind.score_answer)
        if re.search(r"\b(eval|exec|parse_expr|sympify|parse_latex|S)\(", source):
            evaluating.add(name)
    assert evaluating - trusted == EXECUTING


def test_every_problem_can_be_judged() -> None:
    """Whatever the hash seed of the process that made it (polynomial_multiplication walks a set)."""
    found = task("polynomial_multiplication", 3)
    assert all(p.extra["entry"] is not None for p in found.problems)
    assert gym.plain_entry({"question": "q", "answer": "a", "metadata": {"t": (1, 2)}}) is None


HOSTILE = [
    r"\boxed{__import__('os').system('touch MARK')}",
    r"$__import__('os').system('touch MARK')$",
    r"\boxed{\text{open('MARK','w')}}",
    r"\boxed{open('MARK', 'w')}",
    r"the answer is 1 + (lambda: open('MARK','w'))()",
    r"\boxed{\operatorname{open}(MARK)}",
    r"\boxed{\mathrm{exec}('open(1)')}",
    r"\boxed{S('open(\"MARK\",\"w\")')}",
    r"\boxed{{(5)(3)}}",
    "answer: 5.__class__",
]


def test_math_verify_executes_no_answer(tmp_path: Path) -> None:
    from prunetune.tasks.sandbox.grader import grader

    mark = tmp_path / "mark"
    for text in HOSTILE:
        grader("math").ask({"output": text.replace("MARK", str(mark)), "reference": "7"})
    assert not mark.exists()
    assert grader("math").ask({"output": "\\boxed{7}", "reference": "7"})["correct"]
    assert not grader("math").ask({"output": "\\boxed{8}", "reference": "7"})["correct"]


def test_only_digits_and_operators_reach_sympys_parser() -> None:
    """It evaluates its text as Python, and math-verify calls it with what one group of one pattern has matched."""
    from math_verify.parser import ExprExtractionConfig, lazy_expr_regex

    patterns = [pattern for pattern, _ in lazy_expr_regex(ExprExtractionConfig())]
    assert patterns
    for pattern in patterns:
        for text in (
            *POISON,
            *HOSTILE,
            "1+(os.system)(2)",
            "answer: 1 + 2 * x(3)",
            "3+'a'",
            "1+[2]",
            "2 + {3}",
            "5 + _",
            "1;2",
            "1+2\\x",
        ):
            for match in pattern.finditer(text):
                assert re.fullmatch(r"[\d.\s+\-*×/^()÷]*", match.groupdict().get("expr") or "")


def test_too_few_problems_are_told() -> None:
    with pytest.raises(DataError, match="different test problems"):
        task("coin_flip", 500)
