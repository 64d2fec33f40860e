"""MBPP: write a Python function that passes three assertions (Austin et al. 2021; the paper's Table 4).

The data are the source's own files: `mbpp.jsonl` (974 rows), or `sanitized-mbpp.json` (427). Task ids 1-10 are prompts,
11-510 the test split. Shots and prompt are those of lm-eval's `mbpp`: tasks 2, 3 and 4.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from prunetune.data.files import Row
from prunetune.errors import TaskError
from prunetune.tasks.sandbox.jail import Limits
from prunetune.tasks.sandbox.judge import judge_program
from prunetune.tasks.verifiers import Verdict

TEST_IDS = range(11, 511)
SHOT_IDS = (2, 3, 4, 1, 5, 6, 7, 8, 9, 10)
STOP = ("[DONE]",)
LIMITS = Limits(wall_seconds=30.0, cpu_seconds=15)  # the source's own solution of task 123 takes five CPU seconds
PROMPT = "You are an expert Python programmer, and here is your task: {question}\n[BEGIN]\n"


def question(row: Row) -> str:
    """What stands between the opening words and `[BEGIN]`: the wish and the assertions."""
    return f"{row.get('text', row.get('prompt'))} Your code should pass these tests:\n\n" + "\n".join(row["test_list"])


def reference(row: Row) -> str:
    """What a candidate must pass, as JSON: code of the tests' own to run after it (it may use it), and assertions."""
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", []))
    return json.dumps({"setup": setup, "tests": list(row["test_list"])})


def prompt(rows: Sequence[Row], shots: int) -> str:
    """The prompt template: worked examples, then the opening words around `{question}`."""
    known = {int(row["task_id"]): row for row in rows}
    chosen = [known[i] for i in SHOT_IDS if i in known][:shots]
    if len(chosen) < shots:
        raise TaskError(
            f"this file holds {len(chosen)} of the worked examples (task ids 1 to 10)", value=shots, fix="fewer shots"
        )
    worked = [PROMPT.replace("{question}", question(row)) + str(row["code"]) + "\n[DONE]\n\n" for row in chosen]
    return "".join(worked) + PROMPT


def test_rows(rows: Sequence[Row]) -> list[Row]:
    """The test split."""
    return [row for row in rows if int(row["task_id"]) in TEST_IDS]


def extract_code(output: str) -> str:
    """The program in an output: its first fenced block if there is one, else everything before `[DONE]`."""
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", output, flags=re.DOTALL)
    return fenced[1] if fenced else output.partition("[DONE]")[0]


def verify(output: str, tests: str, *, allowed: bool, limits: Limits | None = None) -> Verdict:
    """Run the candidate in the sandbox, and judge it by its assertions, which it never sees (`judge_program`).

    Args:
        output: What the model wrote.
        tests: `reference(row)`; under `given` it may also hold code that the candidate can use, to run before it.
        allowed: The user's permission to run model-written code.
        limits: What it may use.
    """
    code = extract_code(output)
    needs: dict[str, Any] = json.loads(tests)
    program = "\n".join([needs.get("given", ""), code, *_imports(needs["setup"])]).lstrip("\n")
    outcome = judge_program(
        program, tests=needs["tests"], setup=needs["setup"], allowed=allowed, limits=limits or LIMITS
    )
    return Verdict(outcome.ok, code, outcome.reason)


def _imports(setup: str) -> list[str]:
    """The import lines of the setup: its only part that the candidate gets too, because MBPP's may rely on them."""
    try:
        body = ast.parse(setup).body
    except SyntaxError:
        return []  # the judge will say so
    return [ast.unparse(s) for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
