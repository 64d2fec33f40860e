"""The run folder: what is written of a round and read back, which model is current, what may go.

Others take `folder.RunFolder` to write a run, `records.read_run` to read one.
To add a figure to a record: one field in `records`.
"""
