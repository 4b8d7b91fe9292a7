"""`diffusionvl assemble`: joins a language model and a vision tower."""

import argparse
import sys

from .command_line import Parser, add_overwrite


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="diffusionvl assemble", description="Join a language model and a vision tower into an AR checkpoint."
    )
    parser.add_argument("--lm", required=True, help="causal language model: a folder or a hub id")
    parser.add_argument("--vision", required=True, help="SigLIP, SigLIP 2 or CLIP: a folder or a hub id")
    parser.add_argument("--out", required=True, help="new folder for the assembled checkpoint")
    add_overwrite(parser)
    parser.add_argument(
        "--image-grid",
        choices=["anyres", "single"],
        default="anyres",
        help="the picture and its tiles (anyres, LLaVA-OneVision), or the picture alone (single, LLaVA)",
    )
    parser.add_argument("--projector", help="assembled checkpoint whose projector to take, such as an aligned one")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="type of weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new projector (0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Assembles and saves a checkpoint. Returns the exit code."""
    return build_parser().run(_assemble, argv)


def _assemble(arguments: argparse.Namespace) -> None:
    from ..assembly import assemble
    from ..checkpoints.checkpoint import save_checkpoint
    from ..checkpoints.output_folder import output_folder

    inputs = [each for each in (arguments.lm, arguments.vision, arguments.projector) if each is not None]
    with output_folder(arguments.out, "assemble", inputs, arguments.overwrite) as folder:
        settings = (arguments.image_grid, arguments.projector, arguments.dtype, arguments.seed)
        model, processor = assemble(arguments.lm, arguments.vision, *settings)
        save_checkpoint(model, processor, folder)
    size = model.num_parameters() / 1e6
    print(
        f"{type(model).__name__} with {size:.1f} M parameters\nimage token {processor.image_token!r} has id "
        f"{model.config.image_token_id}\nwrote {arguments.out}"
    )


if __name__ == "__main__":
    sys.exit(main())
