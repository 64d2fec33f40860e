"""Algorithm 1: decide -> score -> plan -> prune -> recover -> measure, until the target size.

Others take `loop.prune_tune_loop`.
To add a rule for what follows a round: one pure function in `decide` or `verdict`.
"""
