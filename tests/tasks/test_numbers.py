"""Numbers read whole, as references and in answers: a table of what people write, and what is refused."""

from __future__ import annotations

import os
import time
from fractions import Fraction
from pathlib import Path

import pytest

from prunetune.data.files import read_rows
from prunetune.tasks.numbers import NotOneNumber, last_number, normalise
from prunetune.tasks.verifiers import is_worked, reference_number, refusal, verify_boxed, verify_exact, verify_number

ONE = {
    r"1/2": "1/2", r"\frac{1}{2}": "1/2", r"\dfrac12": "1/2", r"\tfrac 1 2": "1/2", "1 / 2": "1/2", "1⁄2": "1/2",
    "½": "1/2", "1½": "3/2", "2 ½": "5/2", "1 1/2": "3/2", r"1\frac{1}{2}": "3/2", "-1 1/2": "-3/2", "1/2 cup": "1/2",
    r"-\frac{3}{4}": "-3/4", r"\frac{-3}{4}": "-3/4", r"\frac{3}{-4}": "-3/4", "−½": "-1/2", "0.5 = 1/2": "1/2",
    "−5": "-5", "‐5": "-5", "–5": "-5", "– 5": "-5", "- 5": "-5", "+5": "5", "negative 5": "-5", "x = -5": "-5",
    "1,000": "1000", "12,34,567": "1234567", "1 000": "1000", "1\u2009000": "1000", "1\u202f000.5": "2001/2",
    "1\u00a0000": "1000", "1_000": "1000", "1'000": "1000", "1’000": "1000", r"1{,}000": "1000", r"1\,000": "1000",
    "1.5e3": "1500", "1.5E-3": "3/2000", "1e+21": "1e21", r"1.5 \times 10^{3}": "1500", "1.5 × 10³": "1500",
    "1.5*10^3": "1500", "3 x 10^8 m/s": "300000000", "10^6": "1000000", "10^{-2}": "1/100", "1.5 · 10⁻³": "3/2000",
    "50%": "50", r"50\%": "50", "$1,000": "1000", r"\$1{,}000": "1000", "€5": "5", "-$5": "-5", "$-5": "-5",
    "$-5$": "-5", "$.50": "1/2", ".5": "1/2", "2.": "2", "007": "7", "Rs. 500": "500", "2 million": "2000000",
    "١٢٣": "123", "\uff11\uff12\uff13": "123", "12 cm^2": "12", "12 cm²": "12", "12 m2": "12", "60 km/h": "60",
    r"12\text{ cm}^2": "12", r"18\ \text{dollars}": "18", r"72^\circ": "72", "3rd": "3", "18-year-old": "18",
    "18.": "18", "(5)": "5", "**5**": "5", "18 (eighteen)": "18", "#### 1,250": "1250", "3 + 4 = 7\n#### 7": "7",
    "#### $18": "18", "<answer>7</answer>": "7", r"\boxed{1} and then \boxed{2}": "2", "The answer is 917": "917",
    r"The answer is: \frac{3}{4}.": "3/4",
}  # fmt: skip

NOT_ONE = [
    "", "...", "four", "nan", "inf", "#### ", "3:30", "10:1", "10-15", "10–15", "10 - 15", "10%-15%", "-3 to 5",
    "1 to 2", "x = 3 or 4", "3 or more", "2020-05-03", "12/25/2020", "1.2.3", "3, 4", "3,4", "1;2", "[1, 2]", "(1, 2)",
    "{1,2}", "3,5", "1.234,56", "1,00", "3/0", "1/x", "x/2", "x^2", "5x", "5-x", "3i", "2x + 1", "x + 3", "x - 3", "3!",
    "3 + 4", "2 * 3", "2^10", "1e99999", "9" * 500, ">5", "≤5", "±5", r"\pm 5", "5π", r"5\pi", r"2\sqrt{3}", "√2",
    "sqrt(2)", r"\log 5", r"\frac{\pi}{4}", r"\frac{x}{2}", "0xFF", "0x1F", "1011_2", "1011_{2}", "0.333...", "0.(3)",
    r"0.\overline{3}", "half of 5", "2 and a half", "2 thirds", "3 squared", "5k", "2M", "5 feet 11 inches", "5'11\"",
]  # fmt: skip

ANSWERS = [
    ("1/2", "0.5", True), ("0.5", r"\frac{1}{2}", True), ("2", "1/2", False), (r"thus $\frac{3}{4}$.", "0.75", True),
    ("5", "−5", False), ("-5", "−5", True), ("so it is 1 000", "1000", True), ("0", "1 000", False),
    ("1500", "1.5e3", True), ("3", "1.5e3", False), ("1e5", "100000", True), ("$1,250.", "1250", True),
    ("12 cm^2", "12", True), ("2 + 3 = 5 (in m^2)", "5", True), ("x_1 = 4, as x_2", "4", True), ("at 3:30", "30", False),
    ("10-15", "15", False), ("5 - 3 = 2", "2", True), ("- 5 pears\n- 6 apples", "6", True), ("5-3=2", "2", True),
    (r"\boxed{12}, as step 3 says", "12", True), (r"\boxed{1}, \boxed{2}", "2", True), (r"\boxed{5\pi}", "5", False),
    (r"\boxed{1}, \boxed{2}", "1", False), (r"\boxed{9 \times 2 = 18}", "18", True), ("7\n#### 8\nIs it 9?", "8", True),
    ("#### **18**", "18", True), ("#### 18 dollars", "18", True), ("3 million", "3000000", True),
    ("3 million", "3", True), ("10,11", "1011", False), ("it costs 5$", "5", True), ("USD5", "5", True),
    ("2^10", "10", False), ("50\\%", "50", True), ("1.2.3", "1.2", False), ("...", "5", False), ("", "5", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), ONE.items())
def test_a_reference_is_read_whole(text: str, value: str) -> None:
    assert reference_number(text) == Fraction(value)
    assert refusal("number", text) is None
    assert verify_number(f"#### {text.rpartition('####')[2].strip()}", text).correct or "answer" in text


WORKED = {
    "1+5=6\n6+1=7\n7-3=4\n4+5=9": "9", "2 * 3 = 6\n\n6 / 4 = 1 1/2\n": "3/2", "a = $5\nb = 2 * $5 = $10": "10",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), WORKED.items())
def test_of_worked_lines_without_a_mark_the_last_result_counts(text: str, value: str) -> None:
    assert reference_number(text) == Fraction(value) and refusal("number", text) is None and is_worked(text)
    assert verify_number(text, text).correct
    assert not is_worked(f"{text}\n#### {value}")


@pytest.mark.parametrize(
    "text",
    [
        "1+5=6\nso it is 7",
        "x = 3\nx = 3 or 4",
        "at 3:30 = 15:30\n10-15",
        "1+5=6\n6+x=2y",
        "x^2 = 4\nx = ±2",
        "1+5=6, 6+1=7",
    ],
)
def test_lines_that_are_not_all_worked_are_no_reference(text: str) -> None:
    assert refusal("number", text) and not is_worked(text)


@pytest.mark.parametrize("text", NOT_ONE)
def test_what_is_no_single_number_is_refused(text: str) -> None:
    with pytest.raises(NotOneNumber):
        reference_number(text)
    assert refusal("number", text)


@pytest.mark.parametrize(("output", "reference", "right"), ANSWERS)
def test_an_answer_is_read_by_the_same_reader(output: str, reference: str, right: bool) -> None:
    verdict = verify_number(output, reference)
    assert verdict.correct is right and bool(verdict.reason) is not right


N = 100_000
PIECES = [
    "1 ", "1", "1 234 ", "1,234,", "1/", "1-", "1.", ".1", "a1", "½", "10^", "1e9", "1 1/2 ", "-", " ", "$", "~", "\\", "\n",
    "{", "}", "^{2}", "#### ", "####", "<answer>", "</answer>", "\\boxed{", "\\boxed{1}", "\\frac{1}{", "\\frac{1}{2}",
    "\\sqrt", "answer is ", "million ", "9^{", "x+", "$1$ ", "((", "\\[", "\\text{", "<answer>\\boxed{",
]  # fmt: skip


@pytest.mark.parametrize("verify", [verify_number, verify_exact, verify_boxed])
def test_no_output_makes_a_verifier_slow(verify: object) -> None:
    """100,000 characters each; CPU time of this process, and of the grader what it says itself."""
    assert callable(verify)
    verify("5", "5")
    slow = {}
    for piece in PIECES:
        long = piece * (N // len(piece))
        start = time.process_time()
        verify(long, "5"), verify(long + " 5", "5")
        slow[piece] = time.process_time() - start
    assert max(slow.values()) < 1.0, max(slow, key=lambda p: slow[p])


def test_no_reference_makes_the_reader_slow() -> None:
    start = time.process_time()
    for piece in PIECES:
        refusal("number", piece * (N // len(piece)))
    assert time.process_time() - start < 0.25 * len(PIECES)


def test_forty_kilobytes_of_tags() -> None:
    start = time.process_time()
    assert not verify_exact("<answer>" * 5000, "5").correct
    assert verify_exact("<answer>" * 5000 + "5</answer>", "5").correct
    assert time.process_time() - start < 0.1


@pytest.mark.skipif("PRUNETUNE_DATA" not in os.environ, reason="PRUNETUNE_DATA is not set")
def test_every_reference_of_gsm8k_is_read() -> None:
    rows = read_rows(Path(os.environ["PRUNETUNE_DATA"]) / "gsm8k" / "test.jsonl", {"answer": "answer"})
    said = [row["answer"].rpartition("#### ")[2].replace(",", "") for row in rows]
    assert [reference_number(row["answer"]) for row in rows] == [Fraction(text) for text in said]


def test_the_last_number_of_a_text() -> None:
    found = last_number(normalise("from 3 to −1 234.50 €, in x_2"))
    assert found is not None and (found.text, found.value) == ("-1 234.50", Fraction("-1234.5"))
    assert last_number("none") is None
