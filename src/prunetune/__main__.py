"""`python -m prunetune` is the console script."""

from prunetune.cli import main

main()
