"""`python -m tzfs.cli`, the same as `tzfs`."""

from tzfs.cli import main

main()
