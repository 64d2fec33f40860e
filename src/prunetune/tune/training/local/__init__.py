"""Local recovery: the cut model's layers one after another, each trained to give the original's hidden states.

Others take `run.train_local` and `run.check_local`, which the registry of trainers holds.
To add another way to train a block: `blocks.train_block` alone knows loss and optimiser.
"""
