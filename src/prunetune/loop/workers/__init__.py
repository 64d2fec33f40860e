"""Processes of a launcher, one a device, that hold one model together: they score, fold, answer and measure losses.

Others take `pool.Workers`, which is asked as a model is (`evaluation/spread.py`) and has `score`, `compensate` besides.
To add what they do: a method of `Workers`, and a function in `__main__.py` that the processes run, each on its share.
"""
