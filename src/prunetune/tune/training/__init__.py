"""What a recovery method runs on: batches, losses, teachers, trainers, checkpoints. Imported only once a job starts.

Others take nothing from here: `stage.run_job` picks what runs a method (`trainers.RUNNERS`) by its type.
To add: one file, wrapping a trainer of transformers or TRL by its public API in the `skeleton`.
"""
