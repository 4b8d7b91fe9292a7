"""The folder that a command writes into: nothing half done in it, and one process at a time."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from diffusionvl.checkpoints.output_folder import output_folder

FORK = multiprocessing.get_context("fork")


def write(folder, *names):
    for name in names:
        Path(folder, name).write_text(name)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(out):
    with output_folder(out) as folder:
        write(folder, "config.json", "model.safetensors")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_no_half_checkpoint(tmp_path):
    process = FORK.Process(target=killed, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not {"config.json", "model.safetensors"} & {*names(tmp_path)}
    with output_folder(str(tmp_path)) as folder:
        write(folder, "config.json")
        assert not (tmp_path / "config.json").exists()
    assert names(tmp_path) == ["config.json"]


def fail(out):
    with output_folder(out) as folder:
        write(folder, "config.json")
        raise ValueError("no weights")


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        fail(str(tmp_path / "out"))
    assert names(tmp_path / "out") == []


def hold(out, holding, done):
    with output_folder(out):
        holding.set()
        done.wait(60)


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    holding, done = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(str(tmp_path), holding, done))
    process.start()
    holding.wait(60)
    with pytest.raises(ValueError, match="another run is writing into it"), output_folder(str(tmp_path)):
        pass
    done.set()
    process.join()
    assert process.exitcode == 0


def test_a_new_folder_holds_nothing_and_another_one_keeps_what_is_no_checkpoint(tmp_path):
    write(tmp_path, "notes.txt", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    (tmp_path / "templates").mkdir()
    write(tmp_path / "templates", "old.jinja")
    with pytest.raises(ValueError, match="is there already; give a new one"), output_folder(str(tmp_path)):
        pass
    with output_folder(str(tmp_path), new=False) as folder:
        write(folder, "model.safetensors")
        Path(folder, "templates").mkdir()
        write(Path(folder, "templates"), "new.jinja")
    assert names(tmp_path) == ["model.safetensors", "notes.txt", "templates"]
    assert names(tmp_path / "templates") == ["new.jinja"]
