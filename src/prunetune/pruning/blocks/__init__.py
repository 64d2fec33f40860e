"""Units that are blocks of a readout's columns, such as heads: their weights, scores and choice, least squares.

Others take `units.blocks_of`, `walk.BlockPass`, `walk.BlockMoments`, `fold.fold_blocks`.
To add an axis of such units: `models/axes` alone; to let a criterion score them, its `blocks` in `criteria`.
"""
