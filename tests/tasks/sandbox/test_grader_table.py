"""The graders against math-verify and lm-eval on hand-written answers, and against 10,000 strings of nonsense."""

from __future__ import annotations

import logging
import time

import math_verify
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunetune.tasks.sandbox.grader import grader
from prunetune.tasks.verifiers import extract_number, verify_boxed, verify_exact, verify_number

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

# (reference, output, right): for `boxed`
BOXED: list[tuple[str, str, bool]] = [
    # fractions and decimals
    (r"\frac{1}{2}", r"The answer is $\boxed{\frac{1}{2}}$.", True),
    (r"\frac{1}{2}", r"\boxed{0.5}", True),
    (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", True),
    (r"\frac{1}{2}", r"\boxed{\dfrac12}", True),
    (r"\frac{1}{2}", r"\boxed{\tfrac{1}{2}}", True),
    (r"\frac{1}{2}", r"\boxed{1/2}", True),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", False),
    (r"\frac{1}{2}", r"\boxed{2}", False),
    (r"0.75", r"\boxed{\frac{3}{4}}", True),
    (r"\frac{7}{3}", r"\boxed{2\frac{1}{3}}", True),
    (r"\frac{7}{3}", r"$\frac{14}{6}$", True),
    (r"-\frac{2}{3}", r"\boxed{\frac{-2}{3}}", True),
    (r"-\frac{2}{3}", r"\boxed{\frac{2}{-3}}", True),
    (r"-\frac{2}{3}", r"\boxed{\frac{2}{3}}", False),
    (r"0.333", r"\boxed{\frac{1}{3}}", False),
    (r"\frac{22}{7}", r"\boxed{\pi}", False),
    # integers and signs
    ("7", r"\boxed{7}", True),
    ("7", "so the answer is $7$", True),
    ("7", "The final answer is 7.", True),
    ("7", r"\boxed{07}", True),
    ("7", r"\boxed{7.0}", True),
    ("7", r"\boxed{8}", False),
    ("-3", r"\boxed{-3}", True),
    ("-3", r"\boxed{3}", False),
    ("-3", r"\boxed{- 3}", True),
    ("0", r"\boxed{0}", True),
    ("0", r"\boxed{-0}", True),
    ("12", r"\boxed{3 \cdot 4}", True),
    ("12", r"\boxed{3 \times 4}", True),
    ("24", r"\boxed{4!}", True),
    ("8", r"\boxed{2^3}", True),
    # thousands separators
    ("1250", r"\boxed{1,250}", True),
    ("1250", r"\boxed{1{,}250}", True),
    ("1250", r"\boxed{1\,250}", False),  # a thin space is a product to it
    ("1250", r"\boxed{1250.00}", True),
    ("1,000,000", r"\boxed{1000000}", True),
    ("1,000,000", r"\boxed{10^6}", True),
    ("1250", r"\boxed{125}", False),
    # percent, money, units
    (r"50\%", r"\boxed{50\%}", True),
    (r"50\%", r"\boxed{50}", False),  # a percent sign counts
    (r"50\%", r"\boxed{0.5}", False),
    (r"50\%", r"\boxed{51\%}", False),
    (r"\$18", r"\boxed{\$18}", True),
    (r"\$18", r"\boxed{18}", True),
    ("18", r"\boxed{\$18.00}", True),
    ("18", r"\boxed{18 \text{ dollars}}", True),
    (r"12 \text{ cm}", r"\boxed{12}", True),
    (r"12 \text{ cm}", r"\boxed{12 \text{ cm}}", True),
    (r"12 \text{ cm}", r"\boxed{13 \text{ cm}}", False),
    (r"5 \text{ hours}", r"\boxed{5\mbox{ hours}}", True),
    (r"90^\circ", r"\boxed{90}", True),
    (r"90^\circ", r"\boxed{90^{\circ}}", True),
    (r"90^\circ", r"\boxed{45^\circ}", False),
    # roots, powers, constants
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}", True),
    (r"\sqrt{2}", r"\boxed{\sqrt2}", True),
    (r"\sqrt{2}", r"\boxed{2^{1/2}}", True),
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", True),
    (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}", True),
    (r"\sqrt{2}", r"\boxed{\sqrt{3}}", False),
    (r"\sqrt[3]{2}", r"\boxed{2^{1/3}}", True),
    (r"2\pi", r"\boxed{2\pi}", True),
    (r"2\pi", r"\boxed{\pi \cdot 2}", True),
    (r"2\pi", r"\boxed{\pi}", False),
    (r"e^2", r"\boxed{e^{2}}", True),
    (r"3 + 4i", r"\boxed{4i + 3}", True),
    (r"3 + 4i", r"\boxed{3 - 4i}", False),
    (r"\infty", r"\boxed{\infty}", True),
    # expressions
    ("x^2 + 2x + 1", r"\boxed{(x+1)^2}", True),
    ("x^2 + 2x + 1", r"\boxed{1 + 2x + x^2}", True),
    ("x^2 + 2x + 1", r"\boxed{x^2 + 1}", False),
    (r"\frac{x}{2}", r"\boxed{0.5x}", True),
    ("2a + 2b", r"\boxed{2(a+b)}", True),
    (r"\log_2 8", r"\boxed{3}", True),
    (r"\sin^2 x + \cos^2 x", r"\boxed{1}", True),
    ("x = 5", r"\boxed{5}", True),
    ("5", r"\boxed{x = 5}", True),
    ("y = 2x + 3", r"\boxed{y = 2x + 3}", True),
    ("y = 2x + 3", r"\boxed{y = 3x + 2}", False),
    # intervals, sets, tuples
    ("(0, 1)", r"\boxed{(0,1)}", True),
    ("(0, 1)", r"\boxed{(1,0)}", False),
    ("[2, 5)", r"\boxed{[2,5)}", True),
    ("[2, 5)", r"\boxed{[2,5]}", False),
    ("[2, 5)", r"\boxed{\left[2, 5\right)}", True),
    (r"(-\infty, 3)", r"\boxed{(-\infty,3)}", True),
    (r"(-\infty, 1) \cup (2, \infty)", r"\boxed{(-\infty,1)\cup(2,\infty)}", True),
    (r"(-\infty, 1) \cup (2, \infty)", r"\boxed{(-\infty,1)}", False),
    (r"\{1, 2, 3\}", r"\boxed{\{3, 2, 1\}}", True),
    (r"\{1, 2, 3\}", r"\boxed{\{1, 2\}}", False),
    (r"\{1, 2, 3\}", r"\boxed{1, 2, 3}", True),
    ("(1, 2, 3)", r"\boxed{(1, 2, 3)}", True),
    (r"\left(\frac{1}{2}, 3\right)", r"\boxed{(0.5, 3)}", True),
    ("2, -2", r"\boxed{-2, 2}", True),
    # matrices
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", True),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}", True),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}}", False),
    (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\boxed{\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}}", True),
    # text
    (r"\text{Tuesday}", r"\boxed{\text{Tuesday}}", True),
    (r"\text{Tuesday}", r"\boxed{\text{Monday}}", False),
    (r"\text{even}", r"\boxed{\text{even}}", True),
    (r"\text{(C)}", r"\boxed{\text{(C)}}", True),
    (r"\text{(C)}", r"\boxed{\text{(D)}}", False),
    # none
    ("7", "", False),
    ("7", "I do not know.", False),
    ("7", r"\boxed{}", False),
    ("7", r"\boxed{", False),
    ("7", r"\boxed{\text{none}}", False),
]

# (reference, output, right, by value only): for `number`; the last column marks what lm-eval's string comparison misses
NUMBER: list[tuple[str, str, bool, bool]] = [
    ("#### 18", "16 - 3 - 4 = 9, 9 * 2 = 18\n#### 18", True, False),
    ("#### 18", "#### 18.", True, False),
    ("#### 18", "#### 18\n\nThat is all.", True, False),
    ("#### 18", "#### $18", True, False),
    ("#### 18", "#### 18 dollars", True, False),
    ("#### 18", "#### 19", False, False),
    ("#### 18", "#### 180", False, False),
    ("#### 18", "#### -18", False, False),
    ("#### 18", "The answer is 18", True, False),
    ("#### 18", "The answer is 18.", True, False),
    ("#### 18", "The answer is $18.", True, False),
    ("#### 18", "The answer is **18**.", True, False),
    ("#### 18", "She makes $18 every day.", True, False),
    ("#### 18", "18 is the answer, after 3 steps", False, False),
    ("#### 18", "18 is the answer", True, False),
    ("#### 18", "9 * 2 = 18", True, False),
    ("#### 18", "9*2=18", True, False),
    ("#### 18", "eighteen", False, False),
    ("#### 18", "", False, False),
    ("#### 18", "####", False, False),
    ("#### 18", "#### ", False, False),
    ("#### 18", "####18", True, False),
    ("#### 18", "#### 17\n#### 18", False, False),
    ("#### 18", "#### 18\nQuestion: and 5?\n#### 5", True, False),
    ("#### 18", "#### 18.0", True, True),
    ("#### 18", "#### 18.00", True, True),
    ("#### 18", "#### 018", True, True),
    ("#### 18", "#### 18.5", False, False),
    ("#### 18", r"\boxed{18}", True, False),
    ("#### 18", "<answer>18</answer>", True, False),
    ("#### 18", "x = 18%", True, False),
    ("#### 18", "18 / 1 = 18", True, False),
    ("#### -4", "#### -4", True, False),
    ("#### -4", "the result is -4", True, False),
    ("#### -4", "the result is 4", False, False),
    ("#### -4", "#### 4", False, False),
    ("#### -4", "3-7 = -4", True, False),
    ("#### 0", "#### 0", True, False),
    ("#### 0", "#### -0", True, True),
    ("#### 0", "nothing", False, False),
    ("#### 0.5", "#### 0.5", True, False),
    ("#### 0.5", "#### .5", True, True),
    ("#### 0.5", "#### 0.50", True, True),
    ("#### 0.5", "half, that is 0.5", True, False),
    ("#### 0.5", "#### 5", False, False),
    ("#### 1,250", "#### 1250", True, False),
    ("#### 1250", "#### 1,250", True, False),
    ("#### 1250", "#### $1,250", True, False),
    ("#### 1250", "It costs $1,250.", True, False),
    ("#### 1250", "It costs $1,250.00.", True, True),
    ("#### 1250", "#### 1.250", False, False),
    ("#### 1000000", "#### 1,000,000", True, False),
    ("#### 1000000", "1,000,000 people", True, False),
    ("#### 25", "25%", True, False),
    ("#### 25", "25 %", True, False),
    ("#### 25", "0.25", False, False),
    ("#### 25", "a quarter is 25 percent", True, False),
    ("#### 7", "Step 1: 3. Step 2: 4. Total: 7 apples", True, False),
    ("#### 7", "7 apples and 2 pears", False, False),
    ("#### 7", "(7)", True, False),
    ("#### 7", "=7", True, False),
    ("#### 7", "7!", True, False),
    ("#### 7", "7, 8", False, False),
    ("#### 7", "7:00", False, False),
    ("#### 123456789012345678901234567890", "#### 123456789012345678901234567890", True, False),
    ("#### 123456789012345678901234567890", "#### 123456789012345678901234567891", False, False),
    ("42", "so 6 * 7 = 42", True, False),
    ("42", "#### 42", True, False),
]


def test_the_table_is_large_enough() -> None:
    assert len(BOXED) + len(NUMBER) >= 150
    assert 30 < sum(not row[2] for row in [*BOXED, *NUMBER]) < 120


@pytest.mark.parametrize(("reference", "output", "right"), BOXED)
def test_boxed_is_right_and_agrees_with_math_verify(reference: str, output: str, right: bool) -> None:
    verdict = verify_boxed(output, reference)
    assert verdict.correct is right
    assert math_verify.verify(math_verify.parse(f"\\boxed{{{reference}}}"), math_verify.parse(output)) is right


@pytest.mark.parametrize(("reference", "output", "right", "by_value"), NUMBER)
def test_number_is_right_and_agrees_with_lm_eval(reference: str, output: str, right: bool, by_value: bool) -> None:
    assert verify_number(output, reference).correct is right
    extracted = lm_eval_extraction(output)
    ours = extract_number(output)
    told = extracted.rstrip(".")  # a full stop is no part of a number
    assert (ours and ours.rstrip(".")) == (told if any(c.isdigit() for c in told) else None)
    theirs = lm_eval_score(extracted, reference)
    assert theirs is (right and not by_value)


@pytest.mark.parametrize(
    ("reference", "output", "right"),
    [
        ("#### 1250", "#### 1 250", True),
        ("#### 1000000", "10^6", True),
        ("#### 1000000", "1e6", True),
        ("#### 7", "#### 7:30", False),
    ],
)
def test_a_number_is_read_whole_where_lm_eval_reads_a_part(reference: str, output: str, right: bool) -> None:
    assert verify_number(output, reference).correct is right
    assert lm_eval_score(lm_eval_extraction(output), reference) is not right


@pytest.mark.parametrize(
    ("reference", "output", "right"),
    [
        ("10", r"first \boxed{9}, corrected: \boxed{10}", True),
        ("9, 10", r"first \boxed{9}, then \boxed{10}", False),
    ],
)
def test_the_last_box_counts_where_math_verify_joins_all(reference: str, output: str, right: bool) -> None:
    assert verify_boxed(output, reference).correct is right
    joined = math_verify.verify(math_verify.parse(f"\\boxed{{{reference}}}"), math_verify.parse(output))
    assert joined is not right


def lm_eval_extraction(output: str) -> str:
    """What lm-eval's own filters give: `strict-match`, and where that fails `flexible-extract`."""
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    strict = extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    found = strict.apply([[output]], [{}])[0][0]
    return str(flexible.apply([[output]], [{}])[0][0] if found == "[invalid]" else found)


def lm_eval_score(extracted: str, reference: str) -> bool:
    """lm-eval's own exact match with the settings of its gsm8k.yaml."""
    metrics = pytest.importorskip("lm_eval.api.metrics")
    ignore = [",", r"\$", r"(?s).*#### ", r"\.$"]
    score = metrics.exact_match_hf_evaluate([extracted], [reference], regexes_to_ignore=ignore, ignore_case=True)
    return bool(score["exact_match"])


SYNTAX = r"\boxed{ } { $ \frac ^ _ 1 9 x ( ) [ , . - #### \sqrt \begin{pmatrix} \end{pmatrix} & \\ % ! e **"
PIECES = [*SYNTAX.split(" "), r"\text{", r"\infty", "=", r"\cup", " ", "\n"]
NONSENSE = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
FUZZ = settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.thorough
@pytest.mark.slow
@FUZZ
@given(NONSENSE)
def test_no_string_is_too_much(text: str) -> None:
    start = time.process_time()
    assert verify_number(text, "#### 7").correct in (True, False)
    assert verify_exact(text, "seven").correct in (True, False)
    reply = grader("math").ask({"output": text, "reference": "7"})
    assert "correct" in reply or reply["error"] == "timed out"
    assert time.process_time() - start + reply["cpu_seconds"] < 1


def test_grading_leaves_the_worker_alive_for_the_rest() -> None:
    assert grader("math").ask({"output": "$7$", "reference": "7"})["correct"] is True
