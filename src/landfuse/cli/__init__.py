"""The command line: words and options. A command's module is imported when the command runs."""

import sys


def main() -> None:
    """Runs the command, and knows ctrl-C from the first import on."""
    try:
        from landfuse.cli.commands import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
