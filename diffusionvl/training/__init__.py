"""Training: joins data, objective and model in a subclass of transformers' Trainer."""

from .arguments import BlockDiffusionConfig
from .dataset import RowDataset
from .model_arguments import DataArguments, ModelArguments
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
