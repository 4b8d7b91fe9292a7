"""The folder that a command writes into: nothing half done in it, nothing lost, and one process at a time."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import run

from diffusionvl.checkpoints import output_folder as module
from diffusionvl.checkpoints.output_folder import MARKER, claim, output_folder

FORK = multiprocessing.get_context("fork")


def write(folder, *names, text=None):
    for name in names:
        Path(folder, name).parent.mkdir(exist_ok=True)
        Path(folder, name).write_text(text or name)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != MARKER)


def fill(out, *files, text=None, **settings):
    with output_folder(str(out), "translate", **settings) as folder:
        write(folder, *files, text=text)


def killed(out, step):
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if step != "writing":
        module._mark = module._mark if step == "moving" else kill
        replace = Path.replace
        Path.replace = lambda path, to: kill() if path.name == "config.json" else replace(path, to)
    with output_folder(out, "translate") as folder:
        write(folder, "config.json", "model.safetensors")
        if step == "writing":
            kill()


@pytest.mark.parametrize("step", ["writing", "marking", "moving"])
@pytest.mark.parametrize("new", [True, False])
def test_a_killed_process_leaves_no_half_checkpoint_and_blocks_nobody(tmp_path, step, new):
    if step == "moving" and new:
        pytest.skip("a new folder appears by one rename")
    out = tmp_path / "out"
    if not new:
        out.mkdir()
    process = FORK.Process(target=killed, args=(str(out), step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    fill(out, "config.json", "weights.safetensors")
    assert names(out) == ["config.json", "weights.safetensors"]
    assert names(tmp_path) == ["out"]


def fail(out):
    with output_folder(out, "translate") as folder:
        write(folder, "config.json")
        raise ValueError("no weights")


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        fail(str(tmp_path / "out"))
    assert names(tmp_path) == []


def hold(out, holding, done):
    with output_folder(out, "translate"):
        holding.set()
        done.wait(60)


@pytest.mark.parametrize("new", [True, False])
def test_two_processes_do_not_write_into_one_folder(tmp_path, new):
    out = str(tmp_path / "out") if new else str(tmp_path)
    holding, done = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(out, holding, done))
    process.start()
    holding.wait(60)
    with pytest.raises(ValueError, match="another run is writing into it"):
        fill(out)
    done.set()
    process.join()
    assert process.exitcode == 0


def test_a_command_replaces_what_it_made_itself(tmp_path):
    fill(tmp_path / "out", "config.json", "model-00001-of-00002.safetensors", "templates/old.jinja", "README.md")
    fill(tmp_path / "out", "config.json", "model.safetensors", "templates/new.jinja")
    assert names(tmp_path / "out") == ["config.json", "model.safetensors", "templates"]
    assert names(tmp_path / "out/templates") == ["new.jinja"]


@pytest.mark.parametrize("change", ["other program", "other command", "new file", "changed file", "copied folder"])
def test_what_a_command_did_not_make_is_not_replaced(tmp_path, change):
    out = tmp_path / "out"
    if change == "other program":
        write(out, "model.safetensors")
    elif change == "other command":
        with output_folder(str(out), "merge") as folder:
            write(folder, "model.safetensors")
    else:
        fill(out, "model.safetensors")
    if change == "new file":
        write(out, "notes.txt")
    elif change == "changed file":
        os.utime(out / "model.safetensors", ns=(1, 1))
    elif change == "copied folder":
        shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copy)
        out = tmp_path / "copy"
    with pytest.raises(
        ValueError, match=r"which `diffusionvl translate` did not write; give a new folder, or .*--overwr"
    ):
        fill(out, "config.json")
    assert "config.json" not in names(out)
    fill(out, "config.json", overwrite=True)
    assert names(out) == ["config.json", "notes.txt"] if change == "new file" else ["config.json"]


def test_an_output_that_would_lose_an_input_is_refused(tmp_path):
    write(tmp_path / "base", "model.safetensors")
    for out in (tmp_path / "base", tmp_path, f"{tmp_path}/base/../base"):
        with pytest.raises(ValueError, match=r"is or holds .*base', which is read; give another folder"):
            fill(out, "config.json", inputs=[str(tmp_path / "base")], overwrite=True)
    with pytest.raises(ValueError, match="has an empty name"):
        fill("", "config.json", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        fill(tmp_path / "base/model.safetensors", "config.json", overwrite=True)
    assert names(tmp_path / "base") == ["model.safetensors"]


def test_a_run_claims_its_folder_once(tmp_path):
    claim(str(tmp_path / "run"), "train")
    write(tmp_path / "run", "checkpoint-5/model.safetensors", "log.jsonl")
    claim(str(tmp_path / "run"), "train")
    with pytest.raises(ValueError, match="which `diffusionvl translate` did not write"):
        claim(str(tmp_path / "run"), "translate")
    fill(tmp_path / "translated", "model.safetensors")
    with pytest.raises(ValueError, match="which `diffusionvl train` did not write"):
        claim(str(tmp_path / "translated"), "train")


@pytest.mark.parametrize("out", ["", "IN", "FILES"])
def test_commands_refuse_such_folders_in_one_line(base_dir, translated_dir, tmp_path, capsys, out):
    (tmp_path / "some").mkdir()
    write(tmp_path / "some", "model.safetensors")
    for command, source in (("translate", base_dir), ("export", translated_dir)):
        place = {"": "", "IN": source, "FILES": str(tmp_path / "some")}[out]
        code, printed, err = run(capsys, command, source, *(["--out", place] if command == "translate" else [place]))
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert {"": "has an empty name", "IN": "which is read", "FILES": "did not write"}[out] in err
