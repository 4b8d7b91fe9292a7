"""What commands say alike: that an input can not be used, in one line on stderr with exit code 2; and tables."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(fail(self.prog, f"{message}; see {self.prog} --help"))


def fail(command: str, error: Exception | str) -> int:
    """Prints an error on one line.

    Args:
        command: As the user calls it.
        error: What is wrong; the message names the value, the place and the remedy.

    Returns:
        The exit code, 2.
    """
    print(f"{command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the console, the first column to the left."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
