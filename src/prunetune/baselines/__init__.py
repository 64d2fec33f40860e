"""Baselines that are no prune plan, so that they need code: SliceGPT. A research artefact, not part of the loop.

ShortGPT, Prune-Once and an LLM-Pruner-like run are recipes: `recipes/baselines/`.
"""
