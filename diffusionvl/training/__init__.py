"""Training: joins data, objective and model in a subclass of transformers' Trainer."""

from .arguments import BlockDiffusionConfig, DataArguments, ModelArguments
from .dataset import RowDataset
from .packed_dataset import PackedRowDataset, measure_rows
from .trainer import BlockDiffusionTrainer

__all__ = [
    "BlockDiffusionConfig",
    "BlockDiffusionTrainer",
    "DataArguments",
    "ModelArguments",
    "PackedRowDataset",
    "RowDataset",
    "measure_rows",
]
