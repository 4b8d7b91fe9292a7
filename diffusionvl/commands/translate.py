"""`diffusionvl translate`: turns an AR checkpoint into a block-diffusion one."""

import argparse
import sys
from pathlib import Path

from ..modeling.errors import UserError
from .command_line import Parser, add_overwrite


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(prog="diffusionvl translate", description="Turn an AR checkpoint into a block-diffusion one.")
    parser.add_argument("base", help="AR checkpoint: a folder or a hub id")
    parser.add_argument("--out", required=True, help="folder for the block-diffusion checkpoint")
    add_overwrite(parser)
    parser.add_argument("--block-size", type=int, default=8, help="tokens that are denoised together (8)")
    parser.add_argument("--position-mode", choices=["native", "sequential"], default="native")
    parser.add_argument("--block-origin", choices=["response", "absolute"], default="response")
    parser.add_argument(
        "--clean-attention",
        choices=["block", "causal"],
        default="causal",
        help="what clean tokens see: what the AR model lets them see (causal, the default), or their block (block, the "
        "paper's)",
    )
    parser.add_argument("--min-pixels", type=int, help="least pixels of a picture (Qwen-VL); the processor's own")
    parser.add_argument("--max-pixels", type=int, help="most pixels of a picture (Qwen-VL); the processor's own")
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja template of conversations; the base's own")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository, if it needs any"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Translates and saves a checkpoint. Returns the exit code."""
    return build_parser().run(_translate, argv)


def _translate(arguments: argparse.Namespace) -> None:
    from ..checkpoints.checkpoint import save_checkpoint
    from ..checkpoints.output_folder import output_folder
    from ..translation.translate import translate

    out, overwrite = vars(arguments).pop("out"), vars(arguments).pop("overwrite")
    with output_folder(out, "translate", [arguments.base], overwrite) as folder:
        if arguments.chat_template is not None:
            arguments.chat_template = _read_template(arguments.chat_template)
        model, processor = translate(**vars(arguments))
        save_checkpoint(model, processor, folder)
    token = processor.tokenizer.mask_token
    print(f"mask token {token!r} has id {model.config.mask_token_id}\nwrote {out}")


def _read_template(path: str) -> str:
    """The text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--chat-template {path!r} is not written in UTF-8 ({error.reason}); give a text") from error


if __name__ == "__main__":
    sys.exit(main())
