"""What is not our method and no prune plan, so that it needs code: SliceGPT, full-model training.

Others take `slicegpt_run` and `full_model`. ShortGPT, Prune-Once, `ptl_vote` and an
LLM-Pruner-like run are recipes (`recipe/shipped/baselines/`).
To add: one module here that writes a run folder like any other.
"""
