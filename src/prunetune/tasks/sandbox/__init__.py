"""Programs that a model wrote, run so that they can harm nothing; graders that could hang, in a process of their own.

Others take `judge.judge_program`, `program.run_program` and `grader.grader`.
To add a grader that could hang: one entry of `SERVED` in `grader`; a scorer that evaluates answers: `FORMS` in `gym`.
`confined/` is what runs inside: started as a package of its own, importing nothing of ours (`docs/sandbox.md`).
"""
