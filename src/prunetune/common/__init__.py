"""What knows nothing of models: files that are whole or absent, device, progress, units, statistics.

Others take `files.once` and `files.replacing` for everything that is written, `progress.Watch` for what a person sees.
To add: a module here imports `errors` and nothing else of ours.
"""
