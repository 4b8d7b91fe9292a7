"""`diffusionvl assemble`: joins a language model and a vision tower."""

import argparse

from .command_line import fail


def _assemble(arguments: argparse.Namespace) -> int:
    """Assembles and saves a checkpoint."""
    from ..assembly import assemble, save_assembly
    from ..checkpoints.output_folder import output_folder

    try:
        with output_folder(arguments.out) as folder:
            settings = (arguments.image_grid, arguments.projector, arguments.dtype, arguments.seed)
            assembly = assemble(arguments.lm, arguments.vision, *settings)
            save_assembly(assembly, folder)
    except (OSError, ValueError) as error:
        return fail("diffusionvl assemble", error)
    print(f"{assembly.message}\nwrote {arguments.out}")
    return 0
