"""Any module of the published code may be the first that a program imports."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import diffusionvl.modeling
from transformers import PreTrainedModel

names = [module.name for module in pkgutil.iter_modules(diffusionvl.modeling.__path__)]
for name in names:
    for loaded in [each for each in sys.modules if each.startswith(("diffusionvl", "transformers.models.auto"))]:
        del sys.modules[loaded]
    importlib.import_module(f"diffusionvl.modeling.{name}")
print(len(names))
"""


def test_every_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 10
