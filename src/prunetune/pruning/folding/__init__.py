"""Least squares of removed neurons, layer by layer: what is done to one layer, and several plans from one walk.

Others take `together.together`; `compensate` takes the steps of a layer.
To add a way to solve: `least_squares` for the algebra, a module here for the walk.
"""
