"""`python -m prunetune` is the console script."""

from prunetune.cli.app import main

main()
