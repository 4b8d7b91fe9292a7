"""Whether objective, rows and settings fit together."""

from transformers import PreTrainedConfig

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from .arguments import BlockDiffusionConfig
from .dataset import RowDataset
from .packed_dataset import PackedRowDataset


def check_objective(config: PreTrainedConfig, objective: str) -> None:
    """Raises a ValueError if the objective does not fit the model."""
    if isinstance(config, DiffusionVLConfig) != (objective == "block_diffusion"):
        raise ValueError(
            f"objective={objective!r} does not fit a {config.model_type!r} model; "
            "block diffusion needs a checkpoint made by `diffusionvl translate`, AR an AR model"
        )


def check_rows(dataset: RowDataset | PackedRowDataset, args: BlockDiffusionConfig) -> None:
    """Refuses settings that rows do not fit.

    Raises:
        ValueError: They do not.
    """
    packed = isinstance(dataset, PackedRowDataset)
    rows = dataset.rows if isinstance(dataset, PackedRowDataset) else dataset
    if args.complementary and rows.views % 2:
        raise ValueError(f"complementary needs views in pairs, got noisy_views={rows.views}; set noisy_views to 2")
    if args.objective == "ar" and rows.views != 1:
        raise ValueError(f"noisy_views={rows.views} needs objective block_diffusion; AR has no noisy rows")
    if args.noise_order == "reference" and (packed or rows.views > 1):
        raise ValueError(
            "noise_order reference is that of unpacked rows with one view; take packing or noisy_views out"
        )
    strategy = args.train_sampling_strategy
    if strategy == "batch_rebalance" or (packed and strategy == "group_by_length"):
        raise ValueError(
            f"train_sampling_strategy {strategy!r} does not fit these rows; take it out, or use packing alone"
        )
