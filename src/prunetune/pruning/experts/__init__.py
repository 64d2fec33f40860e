"""Mixtures of experts: what stays of their tensors, how redundant an expert or a neuron inside one is, least squares.

Others take `cut.cut_experts`, `tensors.merged`, of `walk` what gathers scores, of `fold` what mends a layer in hand.
To add a family with experts: its entry alone (`models/families/mixtures.py`); an activation of its own: `walk`.
"""
