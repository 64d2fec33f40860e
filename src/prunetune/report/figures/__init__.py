"""A run's figures: records in, SVG out, one look for all (`draw`).

Others take `plots.plots`.
To add a figure: one function here and its line in `plots`.
"""
