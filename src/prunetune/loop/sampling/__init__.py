"""Own traces as data of a run: sampled before they are read, and how long that takes.

Others take `traces.sampled` and `traces.renewed_for` in the loop, `pace.sampling_pace` in a dry run.
To add a setting: `TracesData` in `data/sources.py`, and the `TraceJob` that it becomes in `traces.py`.
"""
