"""Values computed with the reference implementation.

`$DIFFUSIONVL_GOLDEN` names other files of the same format (a path without its suffix), `$DIFFUSIONVL_GOLDEN_MODEL`
another checkpoint.
"""

import json
import os
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).parent / "golden"
GOLDEN = os.environ.get("DIFFUSIONVL_GOLDEN", str(HERE / "reference"))
MODEL = os.environ.get("DIFFUSIONVL_GOLDEN_MODEL", str(HERE / "tiny_qwen2_5_vl"))
MASK_ID, EOS_ID, PAD_ID = 319, 317, 316
CASES = json.loads(Path(f"{GOLDEN}.json").read_text())
TRAIN = {case["name"]: case for case in CASES["train"]}
GENERATE = {case["name"]: case for case in CASES["generate"]}


def tensors(kind, name):
    prefix = f"{kind}.{name}."
    loaded = load_file(f"{GOLDEN}.safetensors")
    return {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}
