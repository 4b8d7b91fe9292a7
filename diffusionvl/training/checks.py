"""Which settings of a run fit its model and its rows."""

from transformers import PreTrainedConfig

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import reads_images_whole
from ..objective.block_sizes import grown_size
from .arguments import BlockDiffusionConfig
from .dataset import RowDataset
from .packed_dataset import PackedRowDataset


def check_objective(config: PreTrainedConfig, args: BlockDiffusionConfig) -> None:
    """Refuses an objective that the model does not fit.

    Raises:
        UserError: It does not.
    """
    if not isinstance(config, DiffusionVLConfig):
        if args.objective == "block_diffusion":
            raise UserError(
                f"objective='block_diffusion' does not fit a {config.model_type!r} model; it needs a checkpoint made "
                "by `diffusionvl translate`"
            )
        return
    if args.objective == "ar":
        raise UserError(f"objective='ar' does not fit a {config.model_type!r} model; it needs the AR model")
    causal = config.clean_attention == "causal"
    asks = args.on_policy_from is not None
    own_teacher = args.teacher is None and (asks or args.targets == "teacher")
    taught = "on_policy_from without a teacher" if asks else "targets"
    for name, wanted in (("draft", args.draft), ("ar_weight", args.ar_weight), (taught, own_teacher)):
        if wanted and not causal:
            raise UserError(
                f"{name} needs a checkpoint whose clean stream is causal, as that of a new translation is; translate "
                "its base again"
            )
    if args.block_growth is not None and args.block_growth[-1] != config.block_size:
        raise UserError(
            f"block_growth ends at {args.block_growth[-1]}, but the checkpoint's block size is {config.block_size}; "
            "let it end there"
        )
    if (args.block_growth or args.random_block_size) and not causal and reads_images_whole(config.base_config):
        raise UserError(
            f"model type {config.base_config.model_type!r} reads images whole, whose blocks cannot be split; take "
            "block_growth and random_block_size out, or translate its base again, with a causal clean stream"
        )
    if causal and args.noise_order == "reference":
        raise UserError("noise_order reference needs clean_attention 'block'; the reference knows no other")
    if asks and (args.fsdp or args.deepspeed):
        raise UserError(
            "on_policy_from needs whole weights in each process, which answers the prompts of its own batch; take "
            "fsdp or deepspeed out"
        )
    if asks and config.draft_adapter is not None:
        raise UserError(
            "on_policy_from does not fit a draft-only adapter, whose own answers are its base's; `diffusionvl draft` "
            "learns from them"
        )
    if config.draft_adapter is not None:
        for name in ("train_modules", "vision_learning_rate", "ar_weight"):
            if getattr(args, name):
                raise UserError(f"{name} would train the base, which a draft-only adapter leaves as it is; take it out")


def settle_ar_weight(config: PreTrainedConfig, args: BlockDiffusionConfig) -> None:
    """Gives `ar_weight` its value where none is set.

    It is 1 where the clean stream is causal, since training by masks alone would unlearn to write token by token, and
    0 for drafts, a clean stream of blocks and the AR objective.
    """
    if args.ar_weight is None:
        translated = isinstance(config, DiffusionVLConfig) and config.draft_adapter is None
        args.ar_weight = float(translated and config.clean_attention == "causal" and not args.draft)


def check_steps(args: BlockDiffusionConfig, steps: int) -> None:
    """Refuses schedules that do not end within the steps of a run.

    Raises:
        UserError: They do not.
    """
    sizes, begin = args.block_growth, args.on_policy_from
    if sizes is not None and grown_size(sizes, args.growth_steps, steps - 1, steps) != sizes[-1]:
        raise UserError(
            f"block_growth {sizes} does not reach its last size: the run has {_steps(steps)}; train longer, or shorten "
            "growth_steps"
        )
    if begin is not None and (begin if begin >= 1 else begin * steps) > steps - 1:
        raise UserError(f"on_policy_from={begin:g} is not reached: the run has {_steps(steps)}; begin sooner")


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def check_rows(dataset: RowDataset | PackedRowDataset, args: BlockDiffusionConfig) -> None:
    """Refuses settings that rows do not fit.

    Raises:
        UserError: They do not.
    """
    packed = isinstance(dataset, PackedRowDataset)
    rows = dataset.rows if isinstance(dataset, PackedRowDataset) else dataset
    if args.complementary and rows.views % 2:
        raise UserError(f"complementary needs views in pairs, got noisy_views={rows.views}; set noisy_views to 2")
    if args.objective == "ar" and rows.views != 1:
        raise UserError(f"noisy_views={rows.views} needs objective block_diffusion; AR has no noisy rows")
    if args.on_policy_from is not None and rows.encoder.supervision != "assistant":
        raise UserError(
            f"on_policy_from needs supervision 'assistant', got {rows.encoder.supervision!r}: the model writes "
            "answers, not the template's tokens"
        )
    if args.noise_order == "reference" and (packed or rows.views > 1):
        raise UserError("noise_order reference is that of unpacked rows with one view; take packing or noisy_views out")
    strategy = args.train_sampling_strategy
    if strategy == "batch_rebalance" or (packed and strategy == "group_by_length"):
        raise UserError(
            f"train_sampling_strategy {strategy!r} does not fit these rows; take it out, or use packing alone"
        )
