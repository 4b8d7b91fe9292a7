"""`diffusionvl export`: copies a checkpoint and adds its code."""

import argparse

from .command_line import fail


def _export(arguments: argparse.Namespace) -> int:
    """Exports a checkpoint with its code."""
    from ..checkpoints.export import export
    from ..checkpoints.output_folder import output_folder

    try:
        with output_folder(arguments.out) as folder:
            export(arguments.folder, folder)
    except (OSError, ValueError) as error:
        return fail("diffusionvl export", error)
    print(f"wrote {arguments.out}")
    return 0
