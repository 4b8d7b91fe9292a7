"""`python -m diffusionvl.infer --model DIR --image a.png --prompt "..."`: answers a question about images."""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.command_line import Parser
from .commands.model_flags import DECODING, add_model_flags, check_model_path, check_translated, given_settings
from .drawing import FILM_SUFFIXES
from .modeling.errors import UserError

# torch and transformers take seconds to import: they wait until the arguments are known to be good.
if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin
    from transformers.generation.streamers import BaseStreamer

    from .modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

LEAST_FRAMES = 2  # qwen-vl-utils takes no fewer


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="diffusionvl infer", description="Answer a question with a block-diffusion model.")
    parser.add_argument("--model", required=True, help="block-diffusion checkpoint: a folder or a hub id")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; repeat for more")
    parser.add_argument("--allow-web", action="store_true", help="fetch pictures that are given by a web address")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video; repeat for more")
    parser.add_argument("--fps", type=float, default=2.0, help="frames taken from a second of video (2)")
    parser.add_argument("--max-frames", type=int, default=64, metavar="N", help="most frames taken from a video (64)")
    add_model_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--film", type=Path, metavar="FILE", help="write the denoising as .gif or .html")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of streaming")
    output.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Answers one question.

    Returns:
        0, or 2 for an input that cannot be used, with one line on stderr that says which and why.
    """
    return build_parser().run(_infer, argv)


def check_paths(arguments: argparse.Namespace) -> None:
    """Checks the paths and what else can be checked before anything slow.

    Raises:
        UserError: The model folder or an image is missing, or the film cannot be written where it should be.
    """
    check_model_path(arguments.model)
    for flag, paths in (("--image", arguments.image), ("--video", arguments.video)):
        for path in paths:
            if flag == "--image" and _on_the_web(path):
                if not arguments.allow_web:
                    raise UserError(f"{flag} {path!r} is on the web; download it, or add --allow-web")
            elif not Path(path).is_file():
                raise UserError(f"{flag} {path!r}: no such file")
    if not 0 < arguments.fps < math.inf:
        raise UserError(f"--fps {arguments.fps}: give a number above 0")
    if arguments.max_frames < LEAST_FRAMES:
        raise UserError(f"--max-frames {arguments.max_frames}: give {LEAST_FRAMES} or more")
    try:
        arguments.prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt holds bytes that are not UTF-8 ({error.reason}); write it in UTF-8") from error
    film = arguments.film
    if film is None:
        return
    if film.is_dir():
        raise UserError(f"--film {str(film)!r}: is a folder; give a file in it")
    if film.suffix not in FILM_SUFFIXES:
        raise UserError(f"--film {str(film)!r}: unknown suffix; give one of {', '.join(FILM_SUFFIXES)}")
    if not film.parent.is_dir():
        raise UserError(f"--film {str(film)!r}: the folder {str(film.parent)!r} does not exist; make it first")
    shown = [path for path in (*arguments.image, *arguments.video) if not _on_the_web(path)]
    if film.exists() and any(map(film.samefile, shown)):
        raise UserError(f"--film {str(film)!r}: would replace a picture that the question is about; give another name")


def _on_the_web(path: str) -> bool:
    """Whether a picture is given by an address rather than a path."""
    return path.lower().startswith(("http://", "https://"))


def _infer(arguments: argparse.Namespace) -> None:
    """Loads, answers, prints and draws."""
    check_paths(arguments)
    given = given_settings(arguments)
    import torch
    from transformers.utils import logging

    from .checkpoints.loading import find_device
    from .data.images import open_image
    from .data.prompts import encode, question
    from .data.record import Video, WebPicture
    from .modeling.generation_configuration_diffusionvl import resolve_settings

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    images = [open_image(WebPicture(path) if _on_the_web(path) else path, "--image") for path in arguments.image]
    device = find_device(arguments.device)
    model, processor = load(arguments, device)
    frames = {"fps": arguments.fps, "max_frames": arguments.max_frames}
    videos = [Video(path, frames) for path in arguments.video]
    inputs = encode(processor, [question(arguments.prompt, images, videos, "--prompt")]).to(device)
    prompt_length = inputs["input_ids"].shape[1]
    settings = resolve_settings(model, None, given, prompt_length)
    streaming = not (arguments.json or arguments.no_stream)
    generator = None if arguments.seed is None else torch.Generator(device).manual_seed(arguments.seed)
    start = time.perf_counter()
    output: Any = model.generate(
        **inputs,
        **given,
        streamer=_streamer(processor.tokenizer) if streaming else None,
        tokenizer=processor.tokenizer,
        generator=generator,
        return_dict_in_generate=True,
        output_history=arguments.film is not None,
    )
    seconds = time.perf_counter() - start
    new = output.sequences[0, prompt_length:]
    answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    report = {
        "answer": answer,
        "tokens": len(new),
        "forwards": int(output.forwards[0]),
        "tokens_per_forward": round(float(output.tokens_per_forward[0]), 4),
        "seconds": round(seconds, 4),
        "settings": {
            **{name: getattr(settings, name) for name in DECODING},
            "block_size": model.config.block_size,
            "seed": arguments.seed,
            "device": str(device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    }
    _print(report, arguments.json, streaming)
    if arguments.film:
        from .drawing.film import side_by_side
        from .drawing.film_gif import draw_film

        image = side_by_side(images) if images else None
        draw_film(arguments.film, output.history, processor.tokenizer, prompt_length, image, arguments.prompt, len(new))


def load(
    arguments: argparse.Namespace, device: "torch.device"
) -> "tuple[DiffusionVLForConditionalGeneration, ProcessorMixin]":
    """Loads model and processor.

    Raises:
        UserError: The checkpoint is an AR one, incomplete or broken.
    """
    from .checkpoints.checkpoint import Checkpoint

    checkpoint = Checkpoint(arguments.model, arguments.trust_remote_code)
    check_translated(checkpoint.config, arguments.model, "--model ")
    processor = checkpoint.processor
    model: Any = checkpoint.model(arguments.dtype)
    return model.eval().to(device), processor


def _streamer(tokenizer: Any) -> "BaseStreamer":
    """Returns a streamer that writes each finished block to stdout, and on a terminal also the drafts, in place."""
    from transformers import TextDiffusionStreamer, TextStreamer

    kind = TextDiffusionStreamer if sys.stdout.isatty() else TextStreamer
    return kind(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _print(report: dict[str, Any], as_json: bool, streamed: bool) -> None:
    """Prints the answer, unless it has been streamed, and what it cost."""
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    if not streamed:
        print(report["answer"])
    print(
        f"{report['tokens']} tokens, {report['forwards']} forwards, {report['tokens_per_forward']:.2f} tokens per "
        f"forward, {report['seconds']:.2f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
