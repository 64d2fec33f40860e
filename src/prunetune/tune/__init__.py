"""Recovery: methods (configs only), training (what runs them), a job in a process of its own.

Others take `methods.TuneConfig` in a recipe, `launch.launch` to run one, `traces` for a model's own answers.
To add a method: one file in `methods/`, listed in `methods/__init__.py`, and its runner in `training/trainers.py`.
"""
