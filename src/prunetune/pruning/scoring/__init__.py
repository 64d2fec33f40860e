"""What one pass over the data gathers of a model's layers: all of them at once, or one after another from disk.

Others take `whole.whole` and `offload.by_layer`; `scores` chooses between them and `ranking`.
To add a way to run the layers: a module here that hangs a `layer.LayerPass` on each of them.
"""
