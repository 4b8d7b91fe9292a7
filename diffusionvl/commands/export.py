"""`diffusionvl export`: copies a checkpoint and adds its code."""

import argparse
import sys

from .command_line import Parser, add_overwrite


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="diffusionvl export", description="Copy a block-diffusion checkpoint and add its code, for the hub."
    )
    parser.add_argument("folder", help="folder of the checkpoint")
    parser.add_argument("out", help="new folder, which loads where this package is not installed")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exports a checkpoint with its code. Returns the exit code."""
    return build_parser().run(_export, argv)


def _export(arguments: argparse.Namespace) -> None:
    from ..checkpoints.export import export
    from ..checkpoints.output_folder import output_folder

    with output_folder(arguments.out, "export", [arguments.folder], arguments.overwrite) as folder:
        export(arguments.folder, folder)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
