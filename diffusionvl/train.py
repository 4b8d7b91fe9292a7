"""`python -m diffusionvl.train recipe.yaml [--key value ...]`: finetunes by block diffusion or autoregression."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedConfig, ProcessorMixin, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from .checkpoints.checkpoint import Checkpoint
from .checkpoints.model_card import write_model_card
from .checkpoints.output_folder import locked
from .commands.command_line import fail
from .commands.recipe import parse_arguments
from .data.conversation import ConversationEncoder
from .data.record import DataError
from .data.sources.json_records import write_jsonl
from .data.sources.records import read_records
from .modeling.attention import TILE, attend_over_tiles
from .modeling.configuration_diffusionvl import DiffusionVLConfig
from .modeling.errors import UserError
from .training import BlockDiffusionTrainer, PackedRowDataset, RowDataset, measure_rows
from .training.arguments import BlockDiffusionConfig, DataArguments, ModelArguments
from .training.callbacks import SaveAndStopOnSigterm
from .training.cost.plan import build_meta_model, plan
from .training.parameters import freeze_others
from .training.run_folder import is_finished, resume_from
from .training.samples import SampleTable
from .training.trainer import check_objective

STOPPED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM has ended


def build_rows(
    files: list[str],
    data: DataArguments,
    args: BlockDiffusionConfig,
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    max_bad_samples: int = 0,
) -> RowDataset:
    """Reads records; they become rows when they are asked for."""
    encoder = ConversationEncoder(processor, data.supervision, data.max_length)
    records = read_records(files, data.image_root, args.seed, check=not max_bad_samples)
    return RowDataset(records, encoder, config, views=data.noisy_views, max_bad_samples=max_bad_samples)


def packed(rows: RowDataset, data: DataArguments, args: BlockDiffusionConfig) -> RowDataset | PackedRowDataset:
    """Rows as they are trained on: packed if the recipe says so."""
    if not data.packing:
        return rows
    sizes = measure_rows(rows, args.dataloader_num_workers, args.process_index, args.world_size)
    packs = PackedRowDataset(rows, sizes, data.pack_tokens, data.pack_images)
    if packs.long and args.process_index == 0:
        print(
            f"diffusionvl train: {packs.long} of {len(rows)} records are longer than pack_tokens={data.pack_tokens} "
            f"and stand alone; the longest has {sizes[:, 0].max()} tokens",
            file=sys.stderr,
        )
    return packs


def build_trainer(model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig) -> BlockDiffusionTrainer:
    """Loads model, processor and records, and joins them in a trainer."""
    set_seed(args.seed)
    checkpoint = Checkpoint(model_args.model, model_args.trust_remote_code)
    processor = checkpoint.processor
    if model_args.lora_r is None:
        model = checkpoint.model(model_args.dtype)
    else:
        from .training.lora import add_adapter, quantization_settings  # needs PEFT

        model = checkpoint.model(model_args.dtype, **quantization_settings(model_args, checkpoint.config))
        model = add_adapter(model, model_args, args)
    rows = build_rows(data.train_records, data, args, processor, model.config, data.max_bad_samples)
    on_gpu = args.device.type == "cuda"
    if model_args.attention == "flex" and not on_gpu:
        raise UserError("attention flex trains on a GPU only; take it out, or set it to sdpa")
    if on_gpu and model_args.attention != "sdpa":
        attend_over_tiles(model.base if isinstance(model.config, DiffusionVLConfig) else model)
        rows.pad_to_multiple_of = TILE
        rows.least_width = data.pack_tokens if data.packing else 0  # one length is compiled once
    train = packed(rows, data, args)
    evaluate = build_rows(data.eval_records, data, args, processor, model.config) if data.eval_records else None
    trainer = BlockDiffusionTrainer(model, args, train_dataset=train, eval_dataset=evaluate, processing_class=processor)
    if args.sample_steps is not None:
        trainer.add_callback(SampleTable(trainer, rows if evaluate is None else evaluate, args.sample_count))
    return trainer


def main(argv: list[str] | None = None) -> int:
    """Trains, and saves the last model where `output_dir` says.

    Returns:
        0, or 2 for an input that cannot be used, or 143 where SIGTERM has stopped the run behind a checkpoint.
    """
    model_args, data, args = parse_arguments(argv)
    if args.dry_run:
        return dry_run(model_args, data, args)
    with ExitStack() as held:
        try:
            if args.process_index == 0:
                held.enter_context(locked(args.output_dir))
            checkpoint = resume_from(args)
            if checkpoint is not None and is_finished(checkpoint, args):
                print(f"diffusionvl train: {checkpoint} is the end of this run; nothing is left to do")
                return 0
            trainer = build_trainer(model_args, data, args)
        except (OSError, ValueError, RuntimeError) as error:
            # The Trainer's own checks, such as for a missing package of `report_to`, are RuntimeErrors.
            return _fail(error) if args.local_process_index == 0 else 2
        watch = SaveAndStopOnSigterm()
        trainer.add_callback(watch)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except (OSError, DataError) as error:
            return _fail(error)
        if watch.stopped:
            return STOPPED
        finish(trainer)
    return 0


def dry_run(model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig) -> int:
    """Prints the plan of a run. Of the model, config and processor are read, not the weights."""
    try:
        checkpoint = Checkpoint(model_args.model, model_args.trust_remote_code)
        model = build_meta_model(checkpoint.config, model_args.dtype)
        check_objective(model.config, args.objective)
        if model_args.lora_r is not None:
            from .training.lora import add_adapter

            model = add_adapter(model, model_args, args)
        if args.train_modules is not None:
            freeze_others(model, args.train_modules)
        processor = checkpoint.processor
        rows = build_rows(data.train_records, data, args, processor, model.config, data.max_bad_samples)
        print(plan(model, packed(rows, data, args), args, data.max_length, model_args.quantization is not None))
    except (OSError, ValueError, RuntimeError) as error:
        return _fail(error)
    return 0


def finish(trainer: BlockDiffusionTrainer) -> None:
    """Writes the trained model, its card and the log, and last the state, which says that all is there.

    Records for evaluation without a strategy that says when are evaluated here, once.
    """
    if trainer.eval_dataset is not None and trainer.args.eval_strategy == "no":
        trainer.evaluate()
    out = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        Path(out, TRAINER_STATE_NAME).unlink(missing_ok=True)  # of a shorter run before
    trainer.save_model()
    if trainer.is_world_process_zero():
        if isinstance(trainer.model.config, DiffusionVLConfig):
            write_model_card(str(out), trainer.model.config, finetuned=True)
        write_jsonl(trainer.state.log_history, out / "log.jsonl")
    trainer.save_state()


def _fail(error: Exception) -> int:
    """Prints one line; the error of a data loading process comes with that process's traceback in front."""
    return fail("diffusionvl train", str(error).rpartition(f"{DataError.__name__}: ")[2])


if __name__ == "__main__":
    sys.exit(main())
