"""The wheel, installed outside the checkout, is the whole package: every module, every command, translate and infer."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from diffusionvl.cli import COMMANDS

IMPORT_ALL = """
import importlib, pkgutil, diffusionvl
for module in pkgutil.walk_packages(diffusionvl.__path__, "diffusionvl."):
    importlib.import_module(module.name)
print(diffusionvl.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, pytestconfig):
    """The built wheel. Building writes into the source folder, so it works on a copy."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    root = pytestconfig.rootpath
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    shutil.copytree(root / "diffusionvl", source / "diffusionvl", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out))
    _call(sys.executable, "-m", "pip", "-q", "wheel", *options, str(source), cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of a new environment with the wheel; the packages that it needs are those of this environment."""
    folder = tmp_path_factory.mktemp("new")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    options = ("--no-deps", "--no-index", "--no-compile")
    _call(sys.executable, "-m", "pip", "--python", str(python), "-q", "install", *options, str(wheel), cwd=folder)
    # A path in a .pth file is searched, but the .pth files in it (an editable install's) are not read.
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(site) / "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin"


def _call(*command, cwd):
    """The standard output of a command that must succeed; the checkout is not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel, pytestconfig):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    root = pytestconfig.rootpath
    files = {
        path.relative_to(root).as_posix()
        for path in (root / "diffusionvl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files


def test_every_module_and_every_help_works_outside_the_checkout(installed, tmp_path):
    found = _call(installed / "python", "-c", IMPORT_ALL, cwd=tmp_path)
    assert Path(found.splitlines()[-1]).is_relative_to(installed.parent)
    assert all(name in _call(installed / "diffusionvl", "--help", cwd=tmp_path) for name in COMMANDS)
    for name in COMMANDS:
        assert _call(installed / "diffusionvl", name, "--help", cwd=tmp_path).startswith("usage: ")


def test_translate_and_infer_work_outside_the_checkout(installed, base_dir, pictures, tmp_path):
    _call(installed / "diffusionvl", "translate", base_dir, "--out", "model", cwd=tmp_path)
    question = ("--image", pictures[0], "--prompt", "what is it?", "--max-new-tokens", "4", "--device", "cpu")
    report = json.loads(
        _call(installed / "diffusionvl", "infer", "--model", "model", *question, "--json", cwd=tmp_path)
    )
    assert report["tokens"] <= 4
