"""Mixtures of experts: what stays of their tensors, and how redundant an expert, or a neuron inside one, is.

Others take `cut.cut_experts`, `tensors.merged`, and of `walk` what gathers scores.
To add a family with experts: its entry alone (`models/families/mixtures.py`); an activation of its own: `walk`.
"""
