"""`diffusionvl merge ADAPTER --out DIR`: a LoRA adapter and its base as one checkpoint, which no longer needs PEFT."""

import argparse
import sys

from ..modeling.errors import UserError
from .command_line import Parser, add_overwrite


def main(argv: list[str] | None = None) -> int:
    """Merges and saves. Returns the exit code."""
    parser = Parser(prog="diffusionvl merge", description="Merge a LoRA adapter into its base.")
    parser.add_argument("adapter", help="folder of the adapter: what training with lora_r has written")
    parser.add_argument("--out", required=True, help="new folder for the merged checkpoint")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="type of the weights; the base's own"
    )
    add_overwrite(parser)
    return parser.run(_merge, argv)


def _merge(arguments: argparse.Namespace) -> None:
    base = merge(arguments.adapter, arguments.out, arguments.dtype, arguments.overwrite)
    print(f"merged {arguments.adapter} into {base}\nwrote {arguments.out}")


def merge(adapter: str, out: str, dtype: str = "auto", overwrite: bool = False) -> str:
    """Merges an adapter into its base, and saves model, processor and model card.

    Args:
        adapter: Folder of the adapter.
        out: New folder.
        dtype: Type of the weights; the base's own by default.
        overwrite: Whether to replace a folder that holds something else.

    Returns:
        The base.

    Raises:
        UserError: The folder holds no adapter, it does not fit its base, or `out` holds something already.
    """
    from ..checkpoints.checkpoint import Checkpoint, save_checkpoint
    from ..checkpoints.output_folder import output_folder

    checkpoint = Checkpoint(adapter)
    if checkpoint.adapter_base is None:
        raise UserError(f"{adapter}: holds no adapter; give a folder that training with lora_r has written")
    inputs = [adapter, checkpoint.adapter_base.path]
    with output_folder(out, "merge", inputs, overwrite) as folder:
        save_checkpoint(checkpoint.model(dtype), checkpoint.processor, folder, finetuned=True)
        Checkpoint(folder).check()
    return checkpoint.adapter_base.path


if __name__ == "__main__":
    sys.exit(main())
