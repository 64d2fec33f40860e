"""What happens to a finished model: does it work where people will use it, its other formats, and the way to the hub.

Others take `check.check`, `export.export` (GGUF), `compressed.compress` (fewer bits), `serve.commands` and `push.push`.
To add a place to check: one function in `check`; a number of bits: one entry of `compressed.SCHEMES`.
"""
