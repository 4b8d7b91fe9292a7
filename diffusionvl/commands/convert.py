"""`diffusionvl convert`: reads another program's checkpoint."""

import argparse

from .command_line import fail


def _convert(arguments: argparse.Namespace) -> int:
    """Converts and saves a checkpoint."""
    from ..checkpoints.output_folder import output_folder
    from ..conversion import hustvl, llada

    mask = {} if arguments.mask_token_id is None else {"mask_token_id": arguments.mask_token_id}
    try:
        if arguments.layout == "llada" and (mask or arguments.to_reference):
            raise ValueError("--to-reference and --mask-token-id are settings of hustvl; leave them out for llada")
        with output_folder(arguments.out) as out:
            if arguments.to_reference:
                hustvl.convert_to_reference(arguments.folder, out, **mask)
            elif arguments.layout == "hustvl":
                hustvl.save_conversion(hustvl.convert_hustvl(arguments.folder, **mask), out)
            else:
                conversion = llada.convert_llada(arguments.folder)
                llada.save_conversion(conversion, out)
                print(f"{conversion.model.num_parameters() / 1e6:.1f} M parameters")
    except (OSError, ValueError) as error:
        return fail("diffusionvl convert", error)
    print(f"wrote {arguments.out}")
    return 0
