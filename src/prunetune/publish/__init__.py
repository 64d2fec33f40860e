"""What happens to a finished model: does it work where people will use it, and the way to the hub.

Others take `check.check` and `push.push`.
To add a place to check: one function in `check`.
"""
