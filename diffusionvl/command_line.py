"""How every command says that an input can not be used: one line on stderr, exit code 2."""

import argparse
import sys
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
