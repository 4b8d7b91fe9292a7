"""What all commands share: a parser, the one line that reports what a user can mend, and tables."""

import argparse
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..modeling.errors import UserError

INTERRUPTED = 130  # the exit code of a process that Ctrl-C has ended


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line, without the usage in front, and knows `--debug`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_defaults(prog=self.prog)  # of the subcommand, where there is one
        if self.add_help:  # a command that only dispatches has neither
            self.add_argument(
                "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error, too"
            )

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(fail(self.prog, f"{message}; see {self.prog} --help"))

    def run(self, body: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None = None) -> int:
        """Parses the command line and does what it asks for.

        Args:
            body: Takes the parsed arguments, and returns the exit code or None for 0.
            argv: Arguments; the command line's if left out.

        Returns:
            The exit code.
        """
        arguments = self.parse_args(argv)
        command, debug = vars(arguments).pop("prog"), vars(arguments).pop("debug", False)
        return report_errors(command, lambda: body(arguments), debug)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that write a checkpoint."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output folder that another program or command has written"
    )


def report_errors(command: str, body: Callable[[], int | None], debug: bool = False) -> int:
    """Runs a command. What a user can mend becomes one line and exit code 2; a bug keeps its traceback.

    That is a `UserError`, and whatever the operating system refuses, such as a file or a full disk.

    Args:
        command: As the user calls it.
        body: Does the work, and returns the exit code or None for 0.
        debug: Whether to show the traceback all the same.
    """
    try:
        if not command.endswith("doctor"):  # which reports it in its table
            check_torchvision()
        return body() or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # a library's own, not the operating system's
            raise
        if debug:
            traceback.print_exc()
        return fail(command, error)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(f"{command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def check_torchvision() -> None:
    """Refuses a torchvision that does not fit torch, on which any import from transformers may fail.

    Raises:
        UserError: It does not fit.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError) as error:
        versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torchvision", "torch"))
        raise UserError(
            f"{versions} do not fit each other ({error}); install the torchvision of this torch, or uninstall "
            "torchvision, which only videos need"
        ) from error


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
    """Lays out a table for the console, with the first column to the left."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table in Markdown, with the first column to the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
