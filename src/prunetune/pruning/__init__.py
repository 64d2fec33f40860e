"""From scores to a smaller model: score -> plan -> patch -> cut, each a pure decision and a file.

Others take `scores.score`, `plan.make_plan`, `compensate.compensate`, `apply.apply_on_disk`.
To add a criterion: one entry in `criteria`.
"""
