"""Text to score and to train on: files, the hub, generators, merged into one stream that rounds share out.

Others take `stream.load_stream` and `stream.Stream`, whose `[start, end)` no two stages share.
To add a source: one entry in `stream`; a file format: one reader in `files`.
"""
