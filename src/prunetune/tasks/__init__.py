"""Questions and who judges them: a kind a file, verifiers, lm-eval's local files, the sandbox for code.

Others take `registry.build_task` and a task's `verify`, which serves evaluation and RL reward alike.
To add a task: one entry in `registry.TASKS`; a verifier: one entry in `verifiers.VERIFIERS`.
"""
