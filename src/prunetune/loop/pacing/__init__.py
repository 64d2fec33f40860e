"""Time on this machine: how fast work is (`pace`, `steps`), a run's (`minutes`, `beside`), what fits (`within`).

Others take `within.within` and `by_time_left`, `clock.Clock`, and the dry run of `rehearsal`.
To add another kind of work: one figure in `pace.Pace`, its part in `minutes.minutes`.
"""
