"""`python -m landfuse`."""

from landfuse.cli import main

main()
