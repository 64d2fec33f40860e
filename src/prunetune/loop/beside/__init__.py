"""What is made and measured beside the rounds: finished models at the rungs of a ladder, and rivals.

Others take `rungs.finished`, `rungs.finish_rungs`, `rivals.rivals_of`, `rivals.measure_rivals`.
To add what a report should set beside our model: measure it here into a folder of its own, as `rivals` does.
"""
