"""The run folder: what is written of a round and read back, which model is current, what may go.

Others take `folder.RunFolder` to write a run, `reading.read_run` to read one, the types of `records` and `summary`.
To add a figure to a record: one field in `records` (of a round) or `summary` (of a run).
"""
