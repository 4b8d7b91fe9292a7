"""`--help` of every command is quick: nothing heavy is imported before the arguments are known to be good."""

import subprocess
import sys

import pytest

from diffusionvl.cli import COMMANDS

QUICK = [f"diffusionvl.cli {name}" for name in COMMANDS]
QUICK += [f"eval.{name}" for name in ("run", "report", "compare", "speed", "bertscore")]


@pytest.mark.parametrize("command", QUICK)
def test_help_imports_nothing_heavy(command):
    module, *arguments = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', *{arguments!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
