"""`scripts/environment.sh`: in which environment the scripts run."""

import shutil
import subprocess

import pytest


@pytest.fixture
def checkout(tmp_path, pytestconfig):
    """A checkout whose setup.sh only says that it ran, with a .venv; and an environment that may be active."""
    scripts = tmp_path / "checkout/scripts"
    scripts.mkdir(parents=True)
    shutil.copy(pytestconfig.rootpath / "scripts/environment.sh", scripts)
    (scripts / "setup.sh").write_text("echo set up\n", encoding="utf-8")
    for folder in ("checkout/.venv/bin", "active"):
        (tmp_path / folder).mkdir(parents=True)
        _program(tmp_path / folder / "python")
    _program(tmp_path / "checkout/.venv/bin/diffusionvl")
    return scripts.parent


def _program(path):
    path.write_text("#!/usr/bin/env bash\n", encoding="utf-8")
    path.chmod(0o755)


def _python_of(checkout, function):
    """What sourcing prints, and the python that is found then, where the other environment is active."""
    script = f"source scripts/environment.sh; {function}; command -v python"
    path = f"{checkout.parent}/active:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", script], cwd=checkout, env={"PATH": path}, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def test_a_launcher_takes_the_active_environment_if_it_has_the_package(checkout):
    own, active = f"{checkout}/.venv/bin/python", f"{checkout.parent}/active/python"
    assert _python_of(checkout, "use_active_environment") == [own]
    _program(checkout.parent / "active/diffusionvl")
    assert _python_of(checkout, "use_active_environment") == [active]


def test_a_script_that_sets_up_takes_its_own(checkout):
    _program(checkout.parent / "active/diffusionvl")
    assert _python_of(checkout, "use_own_environment") == ["set up", f"{checkout}/.venv/bin/python"]
