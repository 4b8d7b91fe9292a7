"""Rows of a data set, made when they are asked for."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from ..data.collate import collate
from ..data.conversation import ConversationEncoder
from ..data.records import Record, Records
from ..data.streams import IGNORED, Row, build_row
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.families import (
    auto_class,
    native_positions,
    placeholder_ids,
    position_axes,
    row_blocks,
    sequential_positions,
)


class RowDataset(Dataset):
    """Records as rows of clean and noisy streams.

    Args:
        records: What `read_records` gave.
        encoder: Turns a record into tokens.
        config: Config of the model: a `DiffusionVLConfig`, or an AR model's for the AR objective.
        layout: A layout of `build_row`; by default `response_only` for a `DiffusionVLConfig` and `clean` for AR.

    Raises:
        ValueError: Encoder and model disagree about the token that closes a turn.
    """

    def __init__(
        self,
        records: Records | list[Record],
        encoder: ConversationEncoder,
        config: PreTrainedConfig,
        layout: str | None = None,
    ) -> None:
        self.records = records
        self.encoder = encoder
        self.config = config
        self.diffusion = isinstance(config, DiffusionVLConfig)
        self.base_config = config.base_config if isinstance(config, DiffusionVLConfig) else config
        self.layout = layout or ("response_only" if self.diffusion else "clean")
        if isinstance(config, DiffusionVLConfig) and encoder.end_of_turn_id not in config.end_of_turn_ids:
            raise ValueError(
                f"the chat template closes a turn with {encoder.end_of_turn!r} (id {encoder.end_of_turn_id}), but the "
                f"model's eos_token_id is {config.eos_token_id}; translate its base again, with this template"
            )
        self._meta_base: PreTrainedModel | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Row | None, bool]:
        """The row, or None if truncation left nothing to learn from; and whether it was truncated."""
        record = self.records[index]
        encoded = self.encoder.encode(record)
        if encoded is None:
            return None, True
        ids = encoded.input_ids
        row = build_row(
            ids,
            encoded.labels,
            row_blocks(self.config, ids) if self.diffusion else torch.arange(len(ids)),
            self._positions(ids, encoded.media),
            self.config.block_size if self.diffusion else 1,
            self.encoder.end_of_turn_id,
            self.layout,
        )
        row.media, row.index, row.name = encoded.media, index, record.name
        return row, encoded.truncated

    def collate(self, items: list[tuple[Row | None, bool]]) -> dict[str, Any]:
        """Pads rows into a batch, leaving out the ones that truncation emptied; both are counted in the batch.

        If none is left, the batch is a row of one token that carries no loss: all processes take the same steps.
        """
        rows = [row for row, _ in items if row is not None]
        pad_id = self.encoder.tokenizer.pad_token_id
        batch = collate(rows or [self._empty_row(pad_id)], pad_id, placeholder_ids(self.base_config))
        batch["truncated"] = torch.tensor(sum(truncated for _, truncated in items))
        batch["dropped"] = torch.tensor(len(items) - len(rows))
        return batch

    def _empty_row(self, pad_id: int) -> Row:
        """One token without a label."""
        token, zero = torch.tensor([pad_id]), torch.tensor([0])
        positions = torch.zeros(position_axes(self.base_config), 1, dtype=torch.long)
        return Row(token, torch.tensor([IGNORED]), zero, zero, positions, zero)

    def _positions(self, input_ids: torch.Tensor, media: dict[str, Any]) -> torch.Tensor:
        """Positions [A, L] of a clean stream."""
        mask = torch.ones_like(input_ids)[None]
        if self.diffusion and self.config.position_mode == "sequential":
            return sequential_positions(mask, position_axes(self.base_config))[:, 0]
        if self._meta_base is None:  # the rope index reads the config alone, so no weights are needed
            with torch.device("meta"), set_zero3_state():  # else ZeRO-3 would spread it over the processes
                self._meta_base = auto_class(self.base_config).from_config(self.base_config)
        return native_positions(self._meta_base, input_ids[None], mask, media)[:, 0]
