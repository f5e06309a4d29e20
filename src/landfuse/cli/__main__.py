"""`python -m landfuse.cli`."""

from landfuse.cli import main

main()
