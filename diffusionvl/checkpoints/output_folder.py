"""The folder that a command writes a checkpoint into: it replaces nothing that the command did not make itself.

What a command makes carries a marker, a hidden file that names the command and its files. A folder without that marker,
with the marker of another command, or with files that have come or changed since belongs to the user.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from ..modeling.errors import UserError

MARKER = ".diffusionvl.json"
LOCK_NAME = ".lock"
MOVING = "moving"  # the state of a file that may be there or not
WEIGHTS = ("*.safetensors*", "*.bin", "*.bin.index.json")
UNFINISHED = ".unfinished"  # inside a folder that is there already, or at the end of a new one's name


@contextmanager
def output_folder(out: str, command: str, inputs: Sequence[str] = (), overwrite: bool = False) -> Iterator[str]:
    """Inside, a folder to write into, whose files stand in `out` afterwards.

    A new folder appears by one rename. Where `out` is there already, files move into it, the config last: a checkpoint
    without one is not loaded. A process that is killed blocks nobody, and the next one clears away what it has left.

    Args:
        out: Folder; made if it is not there.
        command: The command that writes, such as `translate`.
        inputs: What the command reads; a hub id counts for nothing.
        overwrite: Whether to replace a folder that holds something else.

    Raises:
        UserError: The folder cannot be made, holds something that the command did not make, is an input, or another
            process is writing into it.
    """
    check_output(out, command, inputs, overwrite)
    folder = Path(out)
    new = not folder.is_dir()
    work = Path(f"{folder}{UNFINISHED}") if new else folder / UNFINISHED
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out!r} cannot be made ({error.strerror})") from error
    with locked(str(work)):
        _clear(work)
        try:
            yield str(work)
            _mark(work, command, dict(_files(work)))
            if new:
                Path(work, LOCK_NAME).unlink()
                work.rename(folder)
            else:
                _move_all(work, folder, command)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def check_output(out: str, command: str, inputs: Sequence[str] = (), overwrite: bool = False) -> None:
    """Refuses an output folder whose contents would be lost.

    Args:
        out: As of `output_folder`.
        command: As of `output_folder`.
        inputs: As of `output_folder`.
        overwrite: As of `output_folder`.

    Raises:
        UserError: It has no name, is a file, an input or a folder around one, or holds something that the command did
            not make.
    """
    if not out.strip():
        raise UserError("the output folder has an empty name; give a new folder")
    folder = Path(out)
    for given in inputs:
        if Path(given).exists() and Path(given).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"the output folder {out!r} is or holds {given!r}, which is read; give another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the output folder {out!r} is a file; give a new folder")
    other = None if overwrite else _not_made_by(folder, command)
    if other is not None:
        raise UserError(
            f"the folder {out!r} holds {other!r}, which `diffusionvl {command}` did not write; give a new folder, or "
            "ask for it to be replaced (--overwrite)"
        )


def claim(out: str, command: str, inputs: Sequence[str] = (), overwrite: bool = False) -> None:
    """Makes `out` the folder of a command that writes into it as it goes, such as a training run.

    Args:
        out: Folder; made if it is not there.
        command: The command.
        inputs: As of `output_folder`.
        overwrite: As of `output_folder`.

    Raises:
        UserError: As of `check_output`; the command's own folder is taken with whatever has come into it since.
    """
    if _marker(Path(out)).get("command") != command:
        check_output(out, command, inputs, overwrite)
    Path(out).mkdir(parents=True, exist_ok=True)
    _mark(Path(out), command, {})


def _marker(folder: Path) -> dict[str, Any]:
    """A folder's marker; empty where it has none that can be read."""
    try:
        found = json.loads(Path(folder, MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mark(folder: Path, command: str, files: dict[str, Any]) -> None:
    Path(folder, MARKER).write_text(json.dumps({"command": command, "files": files}) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Path inside a folder of every file that is not ours, with its size and its time of change."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in (MARKER, LOCK_NAME) and not name.startswith(UNFINISHED):
            yield name, [path.stat().st_size, path.stat().st_mtime_ns]


def _not_made_by(folder: Path, command: str) -> str | None:
    """A file of a folder that a command did not write, or that has changed since."""
    marker = _marker(folder)
    known = marker.get("files", {}) if marker.get("command") == command else {}
    return next((name for name, state in _files(folder) if known.get(name) not in (state, MOVING)), None)


def _move_all(work: Path, folder: Path, command: str) -> None:
    """Moves files into a folder in place of the checkpoint there, the config last; files of the user's own stay."""
    files = dict(_files(work))
    weights = {path.name for pattern in WEIGHTS for path in folder.glob(pattern)}
    before = {*_marker(folder).get("files", {}), *weights}
    # If this is killed, the next run of the command takes what it finds for its own.
    _mark(folder, command, dict.fromkeys({*files, *before}, MOVING))
    for name in (CONFIG_NAME, *before):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == CONFIG_NAME):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).replace(folder / name)
    _mark(folder, command, files)


def _clear(work: Path) -> None:
    """Deletes what a killed process has left in its working folder, but for the lock that is held."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


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
                f"{output_dir!r}: another run is writing into it ({error.strerror}); "
                "wait for its end, or give another folder"
            ) from error
        yield
