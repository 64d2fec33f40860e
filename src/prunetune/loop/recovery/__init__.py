"""Recovery of a round: what each method may take of the data, the methods one after another, and no harm by them.

Others take `recover.recover`, `shares.parts_of`.
To add a rule for what stays of a recovery: `harmless.py`. A recovery method itself is a file of `tune/methods/`.
"""
