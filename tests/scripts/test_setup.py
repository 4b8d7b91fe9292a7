"""`scripts/setup.sh`: which torch it asks for, and that it does nothing where nothing has changed."""

import os
import shutil
import subprocess

import pytest

PYTHON = """#!/usr/bin/env bash
case "$*" in *"config get global.find-links") [ -n "$LINKS" ] && echo "$LINKS" ;; esac
"""
UV = """#!/usr/bin/env bash
echo "$*" >> uv.log
"""


@pytest.fixture
def set_up(tmp_path, pytestconfig):
    """A function that runs the script in a folder whose programs only log how they are called; returns those calls."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("pyproject.toml", "scripts/setup.sh"):
        shutil.copy(pytestconfig.rootpath / name, tmp_path / name)
    for name, text in (("python", PYTHON), ("uv", UV)):
        path = tmp_path / ".venv/bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def set_up(extras="train", links=""):
        log = tmp_path / "uv.log"
        log.write_text("", encoding="utf-8")
        environment = {"PATH": os.environ["PATH"], "LINKS": links}
        subprocess.run(["bash", "scripts/setup.sh", extras], env=environment, cwd=tmp_path, check=True)
        return log.read_text(encoding="utf-8").splitlines()

    return set_up


def test_torch_is_the_one_of_this_machine(set_up, tmp_path):
    """uv chooses it, unless a folder of wheels that pip is configured with holds one."""
    (tmp_path / "wheels").mkdir()
    (call,) = set_up()
    assert call.endswith("--torch-backend auto torch -e .[train]")
    for wheel, torch in (
        ("numpy-2.4.0-cp311.whl", "--torch-backend auto torch"),
        ("torch-2.13.0+cpu-cp311-cp311.whl", f"--find-links {tmp_path}/wheels torch==2.13.0"),
    ):
        (tmp_path / "wheels" / wheel).touch()
        (tmp_path / ".venv/setup-stamp").unlink()
        (call,) = set_up(links=str(tmp_path / "wheels"))
        assert call.endswith(f"{torch} -e .[train]")


def test_what_is_there_is_not_installed_again(set_up, tmp_path):
    """Extras add up, `dev` holds some of the others, and a change of pyproject.toml installs all of them anew."""
    assert len(set_up("train,quickstart")) == 1
    assert set_up("quickstart") == set_up("train") == []
    assert set_up("dev")[0].endswith("-e .[constrain,dev,quickstart,serve,train]")
    assert set_up("quickstart") == set_up("dev") == []
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert set_up("train")[0].endswith("-e .[constrain,dev,quickstart,serve,train]")
