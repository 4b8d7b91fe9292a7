"""`python -m diffusionvl.train recipe.yaml [--key value ...]`: finetunes by block diffusion or autoregression."""

import json
import sys
from pathlib import Path

from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .checkpoint import load_model, load_processor
from .command_line import fail
from .data.conversation import ConversationEncoder
from .data.records import DataError, read_records
from .modeling.configuration_diffusionvl import DiffusionVLConfig
from .training import BlockDiffusionTrainer, RowDataset
from .training.arguments import BlockDiffusionConfig, DataArguments, ModelArguments, parse_arguments
from .translation import write_model_card


def build_trainer(model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig) -> BlockDiffusionTrainer:
    """Loads model, processor and records, and joins them in a trainer."""
    set_seed(args.seed)
    processor = load_processor(model_args.model)
    model = load_model(model_args.model, model_args.dtype)
    encoder = ConversationEncoder(processor, data.supervision, data.max_length)
    train = RowDataset(read_records(data.train_records, data.image_root, args.seed), encoder, model.config)
    evaluate = None
    if data.eval_records:
        evaluate = RowDataset(read_records(data.eval_records, data.image_root, args.seed), encoder, model.config)
    return BlockDiffusionTrainer(model, args, train_dataset=train, eval_dataset=evaluate, processing_class=processor)


def main(argv: list[str] | None = None) -> int:
    """Trains, and saves the last model where `output_dir` says.

    Returns:
        0, or 2 for an input that can not be used.
    """
    model_args, data, args = parse_arguments(argv)
    try:
        checkpoint = resume_from(args)
        if checkpoint is not None and is_finished(checkpoint, args):
            print(f"diffusionvl train: {checkpoint} is the end of this run; nothing is left to do")
            return 0
        trainer = build_trainer(model_args, data, args)
    except (OSError, ValueError, RuntimeError) as error:
        # The Trainer's own checks, such as for a missing package of `report_to`, are RuntimeErrors.
        return _fail(error)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, DataError) as error:
        return _fail(error)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        if isinstance(trainer.model.config, DiffusionVLConfig):
            write_model_card(args.output_dir, trainer.model.config, finetuned=True)
        log = Path(args.output_dir, "log.jsonl")
        log.write_text("".join(json.dumps(line) + "\n" for line in trainer.state.log_history), encoding="utf-8")
    return 0


def _fail(error: Exception) -> int:
    """Prints one line; the error of a data loading process comes with that process's traceback in front."""
    return fail("diffusionvl train", str(error).rpartition(f"{DataError.__name__}: ")[2])


def resume_from(args: BlockDiffusionConfig) -> str | None:
    """The checkpoint to go on from: `--resume_from_checkpoint last` takes the newest in `output_dir`, if any.

    Raises:
        ValueError: It is no checkpoint; or `output_dir` holds some already, which a new run would mix with its own.
    """
    newest = newest_checkpoint(args.output_dir)
    wanted = args.resume_from_checkpoint
    if wanted is None and newest is not None:
        raise ValueError(
            f"output_dir {args.output_dir!r} already holds {Path(newest).name}; "
            "add `--resume_from_checkpoint last` to go on from it, or give another output_dir"
        )
    checkpoint = newest if wanted == "last" else wanted
    if checkpoint is not None and not is_whole(Path(checkpoint)):
        raise ValueError(
            f"resume_from_checkpoint {checkpoint!r} is no whole checkpoint; give `last` or the folder of another one"
        )
    return checkpoint


def newest_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint of a run. Half-written ones are told on stderr and left where they are."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]")
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_whole(folder):
            return str(folder)
        print(f"diffusionvl train: {folder} is only half written and is left out", file=sys.stderr)
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer writes its state last."""
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(checkpoint.glob("*.safetensors")) or any(checkpoint.glob("global_step*"))


def is_finished(checkpoint: str, args: BlockDiffusionConfig) -> bool:
    """Whether a checkpoint is the last one of the run that `args` describe."""
    state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if args.max_steps > 0:
        return state["global_step"] >= args.max_steps
    return state["epoch"] >= args.num_train_epochs


if __name__ == "__main__":
    sys.exit(main())
