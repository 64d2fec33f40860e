"""The command line: each command is one call of a room below. Bad input is one message and exit code 2.

Others take nothing from here.
To add a command: one function in the file of its group (run, prune, recover, evaluate, results), one line in `app`.
"""
