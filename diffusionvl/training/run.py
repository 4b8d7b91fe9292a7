"""A training run, from its settings to the trained model in `output_dir`."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.model_card import write_model_card
from ..checkpoints.output_folder import check_output, claim, locked
from ..data.conversation import ConversationEncoder
from ..data.record import Record, Records
from ..data.sources.json_records import write_jsonl
from ..data.sources.records import read_records
from ..modeling.attention import TILE, attend_over_tiles
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from .arguments import BlockDiffusionConfig
from .callbacks import SaveAndStopOnSigterm
from .checks import check_objective, check_steps, settle_ar_weight
from .cost.plan import build_meta_model, outline, plan, steps_of
from .dataset import RowDataset
from .draft import add_draft, train_draft_alone
from .loss_chart import draw_losses
from .model_arguments import DataArguments, ModelArguments
from .next_tokens import check_teacher, load_teacher
from .own_answers import Prompts
from .packed_dataset import PackedRowDataset, measure_rows
from .parameters import freeze_others
from .run_folder import (
    check_settings,
    is_finished,
    read_settings,
    recorded_settings,
    remove_checkpoints,
    resume_from,
    unfinished,
)
from .samples import SampleTable
from .trainer import BlockDiffusionTrainer

STOPPED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM has ended


def run(
    model: ModelArguments, data: DataArguments, args: BlockDiffusionConfig, records: list[Record] | None = None
) -> int:
    """Trains, or prints the plan of a dry run.

    Args:
        model: Which model is trained.
        data: Which records it is trained on.
        args: Settings of the run.
        records: The records themselves, where they are not read from files.

    Returns:
        0, or 143 where SIGTERM has stopped the run after a checkpoint.

    Raises:
        UserError: The settings, the model or the records cannot be used, or the run has diverged.
    """
    logging.disable_progress_bar()  # of loading and saving weights
    if args.dry_run:
        check_output(args.output_dir, "train", [model.model, *data.train_records], args.overwrite)
        print(describe(model, data, args))
        return 0
    with ExitStack() as held:
        try:
            if args.process_index == 0:
                claim(args.output_dir, "train", [model.model, *data.train_records], args.overwrite)
                held.enter_context(locked(args.output_dir))
            checkpoint = resume_from(args)
            if is_finished(checkpoint, args):
                _print(args, f"{checkpoint or args.output_dir} is the end of this run; nothing is left to do")
                return 0
            trainer = prepare(model, data, args, checkpoint, records)
            if args.resume_from_checkpoint is None and args.process_index == 0:
                remove_checkpoints(args.output_dir)
        except (UserError, OSError):
            if args.local_process_index:  # the first process of the machine reports the same error
                return 2
            raise
        watch = SaveAndStopOnSigterm()
        trainer.add_callback(watch)
        begin = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        if watch.stopped:
            return STOPPED
        finish(trainer)
        minutes = (time.perf_counter() - begin) / 60
        out = args.output_dir
        _print(args, f"{minutes:.1f} minutes; the model is in {out}, its losses in {out}/log.jsonl and {out}/loss.png")
    return 0


def prepare(
    model: ModelArguments,
    data: DataArguments,
    args: BlockDiffusionConfig,
    checkpoint: str | None,
    records: list[Record] | None,
) -> BlockDiffusionTrainer:
    """Builds the trainer of a run, which may go on from a checkpoint, and prints the plan."""
    if checkpoint is not None and args.ar_weight is None:
        args.ar_weight = read_settings(checkpoint).get("ar_weight", 0.0)  # the run keeps its loss
    trainer = build_trainer(model, data, args, records)
    trainer.settings = recorded_settings(model, data, args, trainer.train_dataset)
    if checkpoint is not None:
        changed = check_settings(checkpoint, trainer.settings)
        _print(args, f"goes on from {checkpoint}" + (f"; changed: {', '.join(changed)}" if changed else ""))
    _print(args, outline(trainer.model, trainer.train_dataset, args))
    return trainer


def build_rows(
    source: list[str] | list[Record],
    data: DataArguments,
    args: BlockDiffusionConfig,
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    max_bad_samples: int = 0,
    training: bool = True,
) -> RowDataset:
    """Reads records, unless they are given themselves; they become rows when they are asked for."""
    prompts = training and args.on_policy_from == 0  # no answer of theirs is learned from
    encoder = ConversationEncoder(processor, data.supervision, data.max_length)
    records: Records | list[Record]
    if isinstance(source[0], Record):
        records = source
    else:
        records = read_records(
            source,
            data.image_root,
            args.seed,
            check=not max_bad_samples,
            allow_web=data.allow_web,
            answered=not prompts,
        )
    draft_seed = args.seed if args.draft else None
    longest = args.on_policy_tokens if training and args.on_policy_from is not None else None
    records = Prompts(records) if prompts else records
    return RowDataset(records, encoder, config, None, data.noisy_views, max_bad_samples, draft_seed, longest)


def packed(rows: RowDataset, data: DataArguments, args: BlockDiffusionConfig) -> RowDataset | PackedRowDataset:
    """Rows as they are trained on: packed if the recipe says so."""
    if not data.packing:
        return rows
    sizes = measure_rows(rows, args.dataloader_num_workers, args.process_index, args.world_size)
    packs = PackedRowDataset(rows, sizes, data.pack_tokens, data.pack_images)
    if packs.long:
        _print(
            args,
            f"{packs.long} of {len(rows)} records are longer than pack_tokens={data.pack_tokens} and stand alone; the "
            f"longest has {sizes[:, 0].max()} tokens",
        )
    return packs


def build_trainer(
    model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig, records: list[Record] | None = None
) -> BlockDiffusionTrainer:
    """Loads model, processor and records, and joins them in a trainer."""
    on_gpu = args.device.type == "cuda"
    if model_args.attention == "flex" and not on_gpu:
        raise UserError("attention flex trains on a GPU only; take it out, or set it to sdpa")
    if args.eval_strategy != "no" and not data.eval_records:
        raise UserError(f"eval_strategy {args.eval_strategy.value!r} needs eval_records; give them, or set it to no")
    set_seed(args.seed)
    checkpoint = Checkpoint(model_args.model, model_args.trust_remote_code)
    check_objective(checkpoint.config, args)
    processor = checkpoint.processor
    model = build_model(model_args, args, checkpoint)
    rows = build_rows(records or data.train_records, data, args, processor, model.config, data.max_bad_samples)
    if on_gpu and model_args.attention != "sdpa":
        attend_over_tiles(model.base if isinstance(model.config, DiffusionVLConfig) else model)
        rows.pad_to_multiple_of = TILE
        rows.least_width = data.pack_tokens if data.packing else 0  # one length is compiled once
    train = packed(rows, data, args)
    check_steps(args, steps_of(len(train), args, args.world_size)[1])
    evaluate = None
    if data.eval_records:
        evaluate = build_rows(data.eval_records, data, args, processor, model.config, training=False)
    teacher = load_teacher(args.teacher, model_args.dtype, model.config, processor) if args.teacher else None
    trainer = BlockDiffusionTrainer(model, args, train, teacher, eval_dataset=evaluate, processing_class=processor)
    if args.sample_steps is not None:
        trainer.add_callback(SampleTable(trainer, rows if evaluate is None else evaluate, args.sample_count))
    return trainer


def build_model(model_args: ModelArguments, args: BlockDiffusionConfig, checkpoint: Checkpoint) -> PreTrainedModel:
    """Loads the model, with its adapter if it gets one."""
    settings = {}
    if model_args.quantization is not None:
        from .lora import quantization_settings  # needs PEFT, as below

        settings = quantization_settings(model_args, checkpoint.config)
    model = checkpoint.model(model_args.dtype, **settings)
    if model_args.lora_on == "noisy":
        model = add_draft(model, *adapter_of(model_args))
    elif model_args.lora_r is not None:
        from .lora import add_adapter

        model = add_adapter(model, model_args, args)
    if isinstance(model, DiffusionVLForConditionalGeneration) and model.draft is not None:
        train_draft_alone(model)
    return model


def adapter_of(model_args: ModelArguments) -> tuple[str, int | None, int | None, list[str] | None]:
    """The arguments of `add_draft` after the model."""
    return model_args.model, model_args.lora_r, model_args.lora_alpha, model_args.lora_target_modules


def describe(model_args: ModelArguments, data: DataArguments, args: BlockDiffusionConfig) -> str:
    """The plan of a run, as text. Config and processor of the model are read, not its weights."""
    checkpoint = Checkpoint(model_args.model, model_args.trust_remote_code)
    model = build_meta_model(checkpoint.config, model_args.dtype)
    check_objective(model.config, args)
    if model_args.lora_on == "noisy":
        train_draft_alone(add_draft(model, *adapter_of(model_args)))
    elif model_args.lora_r is not None:
        from .lora import add_adapter

        model = add_adapter(model, model_args, args)
    settle_ar_weight(model.config, args)
    teacher = None
    if args.teacher:
        config = check_teacher(args.teacher, model.config, checkpoint.processor).config
        teacher = build_meta_model(config, model_args.dtype)
    if args.train_modules is not None:
        freeze_others(model, args.train_modules)
    rows = build_rows(data.train_records, data, args, checkpoint.processor, model.config, data.max_bad_samples)
    train = packed(rows, data, args)
    check_steps(args, steps_of(len(train), args, args.dry_run_processes)[1])
    return plan(model, train, args, data.max_length, model_args.quantization is not None, teacher)


def finish(trainer: BlockDiffusionTrainer) -> None:
    """Writes the trained model, its card and the log, and last the state, which says that all of it is there.

    Records for evaluation are evaluated here, once, if `eval_strategy` does not say when.
    """
    args = trainer.args
    if trainer.eval_dataset is not None and args.eval_strategy == "no":
        trainer.evaluate()
    out = Path(args.output_dir)
    if args.should_save:
        Path(out, TRAINER_STATE_NAME).unlink(missing_ok=True)  # of a shorter run before
    with unfinished(args.output_dir, args.should_save) as folder:
        trainer.save_model(str(folder))
        trainer.accelerator.wait_for_everyone()
        if args.should_save:
            if isinstance(trainer.model.config, DiffusionVLConfig):
                write_model_card(str(folder), trainer.model.config, finetuned=True)
            write_jsonl(trainer.state.log_history, folder / "log.jsonl")
            draw_losses(trainer.state.log_history, folder / "loss.png")
            for path in folder.iterdir():
                os.replace(path, out / path.name)
    trainer.save_state()


def _print(args: BlockDiffusionConfig, text: str) -> None:
    """Prints lines once for all processes."""
    if args.process_index == 0:
        for line in text.splitlines():
            print(f"diffusionvl train: {line}")
