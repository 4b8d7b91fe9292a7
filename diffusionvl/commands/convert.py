"""`diffusionvl convert`: reads another program's checkpoint."""

import argparse
import sys

from ..modeling.errors import UserError
from .command_line import Parser, add_overwrite


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="diffusionvl convert", description="Read another program's checkpoint into Hugging Face's layout."
    )
    parser.add_argument(
        "layout",
        choices=["llada", "hustvl"],
        help="whose checkpoint it is: LLaDA's, as a Llama; or the DiffusionVL reference's, as it is",
    )
    parser.add_argument("folder", help="folder of the checkpoint")
    parser.add_argument("out", help="new folder for the converted checkpoint")
    add_overwrite(parser)
    parser.add_argument("--to-reference", action="store_true", help="hustvl: write ours in the reference's layout")
    parser.add_argument("--mask-token-id", type=int, help="hustvl: the mask token's id; the reference's own (151671)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Converts and saves a checkpoint. Returns the exit code."""
    return build_parser().run(_convert, argv)


def _convert(arguments: argparse.Namespace) -> None:
    from ..checkpoints.checkpoint import save_checkpoint
    from ..checkpoints.output_folder import output_folder
    from ..conversion import hustvl, llada

    mask = {} if arguments.mask_token_id is None else {"mask_token_id": arguments.mask_token_id}
    if arguments.layout == "llada" and (mask or arguments.to_reference):
        raise UserError("--to-reference and --mask-token-id are settings of hustvl; leave them out for llada")
    with output_folder(arguments.out, "convert", [arguments.folder], arguments.overwrite) as out:
        if arguments.to_reference:
            hustvl.convert_to_reference(arguments.folder, out, **mask)
        elif arguments.layout == "hustvl":
            save_checkpoint(*hustvl.convert_hustvl(arguments.folder, **mask), out)
        else:
            model, processor = llada.convert_llada(arguments.folder)
            save_checkpoint(model, processor, out)
            print(f"{model.num_parameters() / 1e6:.1f} M parameters")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
