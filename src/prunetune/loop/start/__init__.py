"""What a run does once, before its first round.

Others take `vocabulary.started`.
To add a step: one module here that gives a `Context`, and its line in `loop.prune_tune_loop`.
"""
