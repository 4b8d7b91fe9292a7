"""The `diffusionvl` command, which hands over to the command named first."""

import argparse
import importlib
import sys

from . import __version__
from .commands.command_line import Parser

# Each command is a module with a parser of its own, imported only when it is called.
COMMANDS = {
    "assemble": (".commands.assemble", "join a language model and a vision tower into an AR checkpoint"),
    "convert": (".commands.convert", "read another program's checkpoint into Hugging Face's layout"),
    "translate": (".commands.translate", "turn an AR checkpoint into a block-diffusion one"),
    "data": (".commands.data_check", "check records before training on them"),
    "train": (".train", "finetune by block diffusion or autoregression"),
    "draft": (".commands.draft", "train a draft-only adapter, which makes an AR model faster, not different"),
    "merge": (".commands.merge", "merge a LoRA adapter into its base"),
    "infer": (".infer", "answer a question"),
    "answer": (".commands.answer", "answer a file of records and score the answers"),
    "serve": (".commands.serve", "answer over HTTP, as OpenAI's interface does"),
    "export": (".commands.export", "copy a block-diffusion checkpoint and add its code, for the hub"),
    "doctor": (".commands.doctor", "print versions, devices, kernels and what is missing for what"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one of `COMMANDS`; everything after its name is its own."""
    parser = Parser(prog="diffusionvl", description="Block-diffusion vision-language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"diffusionvl {__version__}")
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        command = names.add_parser(name, help=text, add_help=False)
        command.add_argument("rest", nargs=argparse.REMAINDER)
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]][0], __package__).main(argv[1:])
    parser.parse_args(argv)  # prints the help or the version, or says what is wrong
    return parser.error("give the command first")


if __name__ == "__main__":
    sys.exit(main())
