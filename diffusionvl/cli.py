"""The `diffusionvl` command."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs `diffusionvl translate | train | infer`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="diffusionvl", description="Block-diffusion vision-language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    translate = commands.add_parser("translate", help="turn an AR checkpoint into a block-diffusion one")
    translate.add_argument("base", help="AR checkpoint: a folder or a hub id")
    translate.add_argument("--out", required=True, help="folder for the block-diffusion checkpoint")
    translate.add_argument("--block-size", type=int, default=8, help="tokens that are denoised together (8)")
    translate.add_argument("--position-mode", choices=["native", "sequential"], default="native")
    translate.add_argument("--block-origin", choices=["response", "absolute"], default="response")
    for name, text in (("train", "finetune by block diffusion or autoregression"), ("infer", "answer a question")):
        commands.add_parser(name, help=text, add_help=False)
    # train and infer have parsers of their own, which take all that follows.
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "train":
        from .train import main as train

        return train(rest)
    if arguments.command == "infer":
        from .infer import main as infer

        return infer(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _translate(parser, arguments)


def _translate(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Translates and saves a checkpoint."""
    from .translation import save_translation, translate

    try:
        translation = translate(arguments.base, arguments.block_size, arguments.position_mode, arguments.block_origin)
    except (OSError, ValueError) as error:
        parser.exit(2, f"diffusionvl translate: error: {error}\n")
    save_translation(translation, arguments.out, arguments.base)
    print(f"{translation.message}\nwrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
