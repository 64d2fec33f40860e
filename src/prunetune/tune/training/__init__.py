"""What a recovery method runs on: batches, losses, teachers, trainers, checkpoints. Imported only once a job starts.

Others take nothing from here: a method's `train` does.
To add: one file, wrapping a trainer of transformers or TRL by its public API.
"""
