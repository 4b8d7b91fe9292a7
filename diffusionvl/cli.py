"""The `diffusionvl` command."""

import argparse
import importlib
import sys
from pathlib import Path

from .command_line import Parser, fail

# Commands that are modules with parsers of their own.
OWN_PARSERS = {
    "data": "check records before training on them",
    "train": "finetune by block diffusion or autoregression",
    "merge": "merge a LoRA adapter into its base",
    "infer": "answer a question",
    "doctor": "tell versions, devices, kernels and what is missing for what",
}


def main(argv: list[str] | None = None) -> int:
    """Runs `diffusionvl assemble | convert | translate | export | data | train | merge | infer | doctor`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in OWN_PARSERS:  # takes all that follows
        module = "data_check" if arguments.command == "data" else arguments.command
        return importlib.import_module(f".{module}", __package__).main(rest)
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
    for name, text in OWN_PARSERS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _assemble(arguments: argparse.Namespace) -> int:
    """Assembles and saves a checkpoint."""
    from .assembly import assemble, save_assembly
    from .output_folder import output_folder

    try:
        with output_folder(arguments.out) as folder:
            settings = (arguments.image_grid, arguments.projector, arguments.dtype, arguments.seed)
            assembly = assemble(arguments.lm, arguments.vision, *settings)
            save_assembly(assembly, folder)
    except (OSError, ValueError) as error:
        return fail("diffusionvl assemble", error)
    print(f"{assembly.message}\nwrote {arguments.out}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    """Converts and saves a checkpoint."""
    from .integrations import hustvl, llada
    from .output_folder import output_folder

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


def _translate(arguments: argparse.Namespace) -> int:
    """Translates and saves a checkpoint."""
    from .output_folder import output_folder
    from .remote_code import trust_remote_code
    from .translation import save_translation, translate

    try:
        _check_untaken(Path(arguments.out), Path(arguments.base))
        with output_folder(arguments.out, new=False) as folder:
            if arguments.trust_remote_code:
                trust_remote_code(arguments.base)
            if arguments.chat_template is not None:
                arguments.chat_template = _read_template(arguments.chat_template)
            others = ("command", "out", "trust_remote_code")
            translation = translate(**{name: value for name, value in vars(arguments).items() if name not in others})
            save_translation(translation, folder)
    except (OSError, ValueError) as error:
        return fail("diffusionvl translate", error)
    print(f"{translation.message}\nwrote {arguments.out}")
    return 0


def _check_untaken(out: Path, base: Path) -> None:
    """Refuses a folder that holds another model than a translation, which can be made again."""
    if out.resolve() == base.resolve():
        raise ValueError(f"--out {str(out)!r} is the AR checkpoint itself; give another folder")
    if Path(out, "trainer_state.json").exists():
        raise ValueError(f"--out {str(out)!r} holds a finetuned model; give another folder")
    config = out / "config.json"
    if config.exists() and b'"diffusionvl"' not in config.read_bytes():
        raise ValueError(f"--out {str(out)!r} holds another model; give another folder")


def _read_template(path: str) -> str:
    """The text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--chat-template {path!r} is not written in UTF-8 ({error.reason}); give a text") from error


def _export(arguments: argparse.Namespace) -> int:
    """Exports a checkpoint with its code."""
    from .export import export
    from .output_folder import output_folder

    try:
        with output_folder(arguments.out) as folder:
            export(arguments.folder, folder)
    except (OSError, ValueError) as error:
        return fail("diffusionvl export", error)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
