"""The `diffusionvl` command."""

import importlib
import sys

from .commands.assemble import _assemble
from .commands.command_line import Parser
from .commands.convert import _convert
from .commands.export import _export
from .commands.translate import _translate

# Commands that are modules with parsers of their own.
OWN_PARSERS = {
    "data": (".commands.data_check", "check records before training on them"),
    "train": (".train", "finetune by block diffusion or autoregression"),
    "merge": (".commands.merge", "merge a LoRA adapter into its base"),
    "infer": (".infer", "answer a question"),
    "doctor": (".commands.doctor", "tell versions, devices, kernels and what is missing for what"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `diffusionvl assemble | convert | translate | export | data | train | merge | infer | doctor`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in OWN_PARSERS:  # takes all that follows
        return importlib.import_module(OWN_PARSERS[arguments.command][0], __package__).main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    own = {"assemble": _assemble, "convert": _convert, "translate": _translate, "export": _export}
    return own[arguments.command](arguments)


def build_parser() -> Parser:
    """The parser of the command; `OWN_PARSERS` are known to it by their names alone."""
    parser = Parser(prog="diffusionvl", description="Block-diffusion vision-language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    assemble = commands.add_parser("assemble", help="join a language model and a vision tower into an AR checkpoint")
    assemble.add_argument("--lm", required=True, help="causal language model: a folder or a hub id")
    assemble.add_argument("--vision", required=True, help="SigLIP, SigLIP 2 or CLIP: a folder or a hub id")
    assemble.add_argument("--out", required=True, help="new folder for the assembled checkpoint")
    assemble.add_argument(
        "--image-grid",
        choices=["anyres", "single"],
        default="anyres",
        help="the picture and its tiles (anyres, LLaVA-OneVision), or the picture alone (single, LLaVA)",
    )
    assemble.add_argument("--projector", help="assembled checkpoint whose projector to take, such as an aligned one")
    assemble.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="type of weights")
    assemble.add_argument("--seed", type=int, default=0, help="seed of the new projector (0)")
    convert = commands.add_parser("convert", help="read another program's checkpoint into Hugging Face's layout")
    convert.add_argument(
        "layout",
        choices=["llada", "hustvl"],
        help="whose checkpoint it is: LLaDA's, as a Llama; or the DiffusionVL reference's, as it is",
    )
    convert.add_argument("folder", help="folder of the checkpoint")
    convert.add_argument("out", help="new folder for the converted checkpoint")
    convert.add_argument("--to-reference", action="store_true", help="hustvl: write ours in the reference's layout")
    convert.add_argument("--mask-token-id", type=int, help="hustvl: the mask token's id; the reference's own (151671)")
    translate = commands.add_parser("translate", help="turn an AR checkpoint into a block-diffusion one")
    translate.add_argument("base", help="AR checkpoint: a folder or a hub id")
    translate.add_argument("--out", required=True, help="folder for the block-diffusion checkpoint")
    translate.add_argument("--block-size", type=int, default=8, help="tokens that are denoised together (8)")
    translate.add_argument("--position-mode", choices=["native", "sequential"], default="native")
    translate.add_argument("--block-origin", choices=["response", "absolute"], default="response")
    translate.add_argument("--min-pixels", type=int, help="least pixels of a picture (Qwen-VL); the processor's own")
    translate.add_argument("--max-pixels", type=int, help="most pixels of a picture (Qwen-VL); the processor's own")
    translate.add_argument("--chat-template", metavar="FILE", help="Jinja template of conversations; the base's own")
    translate.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository, if it needs any"
    )
    export = commands.add_parser("export", help="copy a block-diffusion checkpoint and add its code, for the hub")
    export.add_argument("folder", help="folder of the checkpoint")
    export.add_argument("out", help="new folder, which loads where this package is not installed")
    for name, (_, text) in OWN_PARSERS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
