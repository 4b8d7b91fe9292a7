"""`diffusionvl serve DIR`: answers over HTTP, as OpenAI's interface does."""

import argparse
import logging
import socket
import sys
from pathlib import Path

from ..modeling.errors import UserError
from .command_line import Parser
from .model_flags import add_machine_flags, check_translated


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(prog="diffusionvl serve", description="Answer over HTTP, as OpenAI's interface does.")
    parser.add_argument("model", help="block-diffusion checkpoint: a folder or a hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--name", help="the model's name in requests; that of its folder if left out")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key that clients must send")
    parser.add_argument("--ui", action="store_true", help="serve a page for people at /, which shows the denoising")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts and answers to the log, too")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch-size", type=int, default=16, metavar="N", help="answers decoded together (16)")
    limits.add_argument("--max-length", type=int, default=4096, metavar="N", help="tokens, prompt and answer (4096)")
    limits.add_argument("--max-waiting", type=int, default=256, metavar="N", help="answers that may wait (256)")
    limits.add_argument(
        "--prefix-cache-tokens", type=int, default=8192, metavar="N", help="kept for prompts that begin alike (8192)"
    )
    limits.add_argument(
        "--picture-cache-bytes", type=int, default=256 * 2**20, metavar="N", help="of prepared pictures (256 MiB)"
    )
    limits.add_argument("--max-body-bytes", type=int, default=32 * 2**20, metavar="N", help="of a request (32 MiB)")
    limits.add_argument("--max-images", type=int, default=16, metavar="N", help="pictures of a request (16)")
    limits.add_argument("--max-pixels", type=int, default=32_000_000, metavar="N", help="of a picture (32 million)")
    limits.add_argument(
        "--allow-web-images", default="", metavar="HOSTS", help="fetch pictures from these hosts, with commas between"
    )
    add_machine_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serves until a signal comes. Returns the exit code."""
    return build_parser().run(_serve, argv)


def _serve(arguments: argparse.Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing; install the extra: pip install 'diffusionvl[serve]'") from error
    _check_address(arguments.host, arguments.port)
    api_key = None if arguments.api_key_file is None else _read_key(arguments.api_key_file)
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.loading import find_device
    from ..serving.app import create_app
    from ..serving.server import run
    from ..serving.settings import ServingSettings

    settings = ServingSettings(
        name=arguments.name or Path(arguments.model).resolve().name,
        api_key=api_key,
        web_hosts=tuple(host.strip().lower() for host in arguments.allow_web_images.split(",") if host.strip()),
        **{name: getattr(arguments, name) for name in vars(arguments) if name.startswith("max_")},
        prefix_cache_tokens=arguments.prefix_cache_tokens,
        picture_cache_bytes=arguments.picture_cache_bytes,
        page=arguments.ui,
        log_prompts=arguments.log_prompts,
    )
    device = find_device(arguments.device)
    checkpoint = Checkpoint(arguments.model, arguments.trust_remote_code)
    check_translated(checkpoint.config, arguments.model)
    processor = checkpoint.processor
    model = checkpoint.model(arguments.dtype).eval().to(device)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    run(create_app(model, processor, settings), arguments.host, arguments.port)


def _check_address(host: str, port: int) -> None:
    """Checks, before the model is loaded, that the server can listen.

    Raises:
        UserError: It cannot, such as where another server does.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on --host {host} --port {port}: {error}; give others") from error


def _read_key(path: Path) -> str:
    """The key in a file, without the line break at its end.

    Raises:
        UserError: There is none.
    """
    key = path.read_text(encoding="utf-8").strip()
    if not key:
        raise UserError(f"--api-key-file {str(path)!r} is empty; write the key into it")
    return key


if __name__ == "__main__":
    sys.exit(main())
