"""`diffusionvl train recipe.yaml [--key value ...]`: finetunes a model by block diffusion or autoregression."""

import os
import sys

from .commands.command_line import report_errors

USAGE = """usage: diffusionvl train [recipe.yaml] [--key value ...]

Finetunes a model by block diffusion or autoregression (AR), as a YAML recipe says; keys on the command line win over
the recipe's. Recipes to start from: configs/recipes. Every key: diffusionvl train --help-all, docs/training.md.

model and records
  --model                         checkpoint folder or hub id (alias: --model_name_or_path)
  --train_records                 records to train on; several are allowed
  --eval_records                  records for the evaluation loss
  --output_dir                    folder for the trained model, its log and its checkpoints
  --max_length                    longest clean stream in tokens; longer ones are cut
  --packing                       put several records into a row of --pack_tokens tokens
objective
  --objective                     block_diffusion or ar
  --weighting                     weight of a masked token: inverse_t, mask_ratio or uniform
  --ar_weight                     weight of the next-token loss of a causal clean stream, beside the diffusion loss
  --own_states                    mask what the model is least certain of, as when it decodes
  --noisy_views                   number of noisy copies of the responses after one clean stream
  --train_modules                 parts to train: vision_tower, projector, language_model
  --lora_r                        rank of LoRA matrices; without it, all weights are trained
run
  --num_train_epochs, --max_steps length of the run
  --learning_rate                 peak of the learning rate
  --per_device_train_batch_size   rows of a batch on one device
  --global_batch_size             rows of an optimizer step over all processes
  --save_steps                    steps between two checkpoints
  --resume_from_checkpoint last   go on from the newest checkpoint of output_dir
  --dry_run                       print the plan, the batch and the memory, and train nothing
  --debug                         show the traceback of an error, too
"""


def main(argv: list[str] | None = None) -> int:
    """Trains, and saves the trained model in `output_dir`.

    Args:
        argv: Arguments; those of the command line if left out.

    Returns:
        0; 2 for something that the user can mend; or 143 where SIGTERM has stopped the run after a checkpoint.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on find_unused_parameters
    from .commands.recipe import parse_arguments  # these import torch and transformers, which takes seconds
    from .training.run import run

    debug = pop_debug(argv)
    model, data, args = parse_arguments(["--help" if word == "--help-all" else word for word in argv])
    return report_errors("diffusionvl train", lambda: run(model, data, args), debug)


def pop_debug(argv: list[str]) -> bool:
    """Takes our `--debug` out of a command line; with a value it is transformers' setting of the same name."""
    for place, word in enumerate(argv):
        if word == "--debug" and (place + 1 == len(argv) or argv[place + 1].startswith("-")):
            del argv[place]
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
