"""Programs that a model wrote, run so that they can harm nothing; graders that could hang, in a process of their own.

Others take `program.run_program` and `grader.grader`.
To add a grader that could hang: one entry of `SERVED` in `grader`.
`jail.py` is the confined side: it is started as a script and imports nothing of ours.
"""
