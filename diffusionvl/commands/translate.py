"""`diffusionvl translate`: turns an AR checkpoint into a block-diffusion one."""

import argparse
from pathlib import Path

from .command_line import fail


def _translate(arguments: argparse.Namespace) -> int:
    """Translates and saves a checkpoint."""
    from ..checkpoints.output_folder import output_folder
    from ..checkpoints.remote_code import trust_remote_code
    from ..translation.translate import save_translation, translate

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
