"""Baselines that are no prune plan, so that they need code: SliceGPT (a research artefact) and full-model training.

ShortGPT, Prune-Once, `ptl_vote` and an LLM-Pruner-like run are recipes: `recipes/baselines/`.
"""
