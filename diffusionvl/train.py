"""`python -m diffusionvl.train recipe.yaml [--key value ...]`: finetunes by block diffusion or autoregression."""

import json
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .data.conversation import ConversationEncoder
from .data.records import DataError, read_records
from .modeling import DiffusionVLConfig
from .processor import load_processor
from .training import BlockDiffusionTrainer, RowDataset
from .training.arguments import BlockDiffusionConfig, DataArguments, ModelArguments, parse_arguments
from .translation import write_model_card


def build_trainer(model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig) -> BlockDiffusionTrainer:
    """Loads model, processor and records, and joins them in a trainer."""
    set_seed(args.seed)
    model = AutoModelForImageTextToText.from_pretrained(model_args.model, dtype=model_args.dtype)
    processor = load_processor(model_args.model)
    encoder = ConversationEncoder(processor, data.supervision, data.max_length)
    train = RowDataset(read_records(data.train_records, data.image_root), encoder, model.config)
    evaluate = None
    if data.eval_records:
        evaluate = RowDataset(read_records(data.eval_records, data.image_root), encoder, model.config)
    return BlockDiffusionTrainer(model, args, train_dataset=train, eval_dataset=evaluate, processing_class=processor)


def main(argv: list[str] | None = None) -> int:
    """Trains, and saves the last model where `output_dir` says.

    Returns:
        0, or 2 for an input that can not be used.
    """
    model_args, data, args = parse_arguments(argv)
    try:
        trainer = build_trainer(model_args, data, args)
        trainer.train(resume_from_checkpoint=resume_from(args))
    except (DataError, OSError) as error:
        print(f"diffusionvl train: error: {error}", file=sys.stderr)
        return 2
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        if isinstance(trainer.model.config, DiffusionVLConfig):
            write_model_card(args.output_dir, trainer.model.config, model_args.model)
        log = Path(args.output_dir, "log.jsonl")
        log.write_text("".join(json.dumps(line) + "\n" for line in trainer.state.log_history), encoding="utf-8")
    return 0


def resume_from(args: BlockDiffusionConfig) -> str | None:
    """The checkpoint to go on from: `--resume_from_checkpoint last` takes the newest in `output_dir`, if any."""
    if args.resume_from_checkpoint != "last":
        return args.resume_from_checkpoint
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
