"""Runs a function that the model wrote against its assertions, in the package's own sandbox, as its `mbpp` task does.

    verifier: studies/09-code/judge.py:judge          # with `allow_custom_code: true`, which here also allows the running

A verifier of a user's own has no `allow_code_execution` of its own to ask; naming this file is that permission.
"""

from __future__ import annotations

from prunetune.tasks import mbpp
from prunetune.tasks.sandbox.program import Limits
from prunetune.tasks.verifiers import Verdict

LIMITS = Limits(wall_seconds=20.0, cpu_seconds=2)  # a right function takes microseconds


def judge(output: str, reference: str) -> Verdict:
    """Whether what the model wrote passes the assertions in `reference`."""
    return mbpp.verify(output.strip(), reference, allowed=True, limits=LIMITS)
