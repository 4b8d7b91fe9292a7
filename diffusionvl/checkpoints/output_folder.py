"""The folder that a command writes a checkpoint into: its own while it works, and filled when all of it is there."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..modeling.errors import UserError

UNFINISHED = ".unfinished"


@contextmanager
def output_folder(out: str, new: bool = True) -> Iterator[str]:
    """Inside, a folder to write into, whose files stand in `out` afterwards.

    A process that is killed leaves no half checkpoint, and the next one clears away what it has left.

    Args:
        out: Folder; made if it is not there.
        new: Whether it must not hold anything yet. Else the weights in it are replaced, and other files stay.

    Raises:
        UserError: It cannot be made, holds something already, or another process is writing into it.
    """
    folder, unfinished = Path(out), Path(out, UNFINISHED)
    others = {path.name for path in folder.iterdir()} - {LOCK_NAME, UNFINISHED} if folder.is_dir() else set()
    if new and (others or folder.is_file()):
        raise UserError(f"the folder {out!r} is there already; give a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out!r} cannot be made ({error.strerror})") from error
    with locked(out):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield str(unfinished)
            _move_all(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            Path(out, LOCK_NAME).unlink()


def _move_all(source: Path, folder: Path) -> None:
    """Moves files into a folder in place of the checkpoint there; the config last, as there is none without it."""
    for old in (folder / CONFIG_NAME, *folder.glob("*.safetensors*")):  # there may have been more files of weights
        old.unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == CONFIG_NAME):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


@contextmanager
def locked(output_dir: str) -> Iterator[None]:
    """Inside, the folder is this process's alone; a process that is killed leaves it free.

    A POSIX record lock, which processes that load data do not inherit. It holds across machines where their shared
    file system knows such locks (NFS 4, Lustre mounted with `flock`).

    Raises:
        UserError: Another run is writing into the folder.
    """
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    with Path(output_dir, LOCK_NAME).open("w", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"output_dir {output_dir!r}: another run is writing into it ({error.strerror}); "
                "wait for its end, or give another output_dir"
            ) from error
        yield


LOCK_NAME = ".lock"
