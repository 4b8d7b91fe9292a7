"""Rows of a data set, made when they are asked for."""

import random
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from ..data.collate import collate
from ..data.conversation import ConversationEncoder, Encoded
from ..data.record import DataError, Record, Records
from ..data.streams import IGNORED, Row, build_row, draft_blocks, join_views
from ..modeling.block_grid import clean_blocks, keep_whole, row_blocks
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import (
    auto_class,
    media_types,
    native_positions,
    placeholder_ids,
    position_axes,
    position_limit,
    reads_images_whole,
    sequential_positions,
)


class Outcome(NamedTuple):
    """What became of a record.

    Attributes:
        row: Its row, or None if truncation left nothing to learn from, or if the record cannot be used.
        truncated: Whether it was truncated.
        error: Why the record cannot be used. It is a value, since an exception would leave a data loading process as
            the text of a traceback.
    """

    row: Row | None
    truncated: bool
    error: DataError | None = None


def report_left_out(error: DataError) -> None:
    """Prints on stderr which record is left out, and why."""
    print(f"diffusionvl train: left out, as max_bad_samples allows: {error}", file=sys.stderr)


class RowDataset(Dataset):
    """Records as rows of clean and noisy streams.

    Args:
        records: What `read_records` gave.
        encoder: Turns a record into tokens.
        config: Config of the model: a `DiffusionVLConfig`, or an AR model's for the AR objective.
        layout: A layout of `build_row`; by default `response_only` for a `DiffusionVLConfig` and `clean` for AR.
        views: Noisy copies of the supervised blocks in a row; of drafts, each is cut anew.
        max_bad_samples: Number of records that may be left out because they cannot be used. At 0 such a record stops
            the trainer; otherwise it is reported on stderr and counted, and the trainer stops when there are more.
        draft_seed: Seed by which draft training cuts responses into blocks, at random in each epoch; if left out, they
            are cut by the config's block grid.
        longest_answer: Number of tokens of the longest answer of the model's own, which may take an answer's place.

    Raises:
        UserError: Encoder and model disagree about the token that closes a turn.
    """

    def __init__(
        self,
        records: Records | list[Record],
        encoder: ConversationEncoder,
        config: PreTrainedConfig,
        layout: str | None = None,
        views: int = 1,
        max_bad_samples: int = 0,
        draft_seed: int | None = None,
        longest_answer: int | None = None,
    ) -> None:
        self.records = records
        self.encoder = encoder
        self.config = config
        self.diffusion = isinstance(config, DiffusionVLConfig)
        self.base_config = config.base_config if isinstance(config, DiffusionVLConfig) else config
        self.layout = layout or ("response_only" if self.diffusion else "clean")
        if isinstance(config, DiffusionVLConfig) and encoder.end_of_turn_id not in config.end_of_turn_ids:
            raise UserError(
                f"the chat template closes a turn with {encoder.end_of_turn!r} (id {encoder.end_of_turn_id}), but the "
                f"model's eos_token_id is {config.eos_token_id}; translate its base again, with this template"
            )
        self.views = views
        self.draft_seed = draft_seed
        self.longest_answer = longest_answer
        self.epoch = 0
        self.max_bad_samples = max_bad_samples
        self.pad_to_multiple_of = 1  # of the width of a batch
        self.least_width = 0  # of a batch
        self._meta_base: PreTrainedModel | None = None
        self._filler: Row | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Outcome:
        try:
            record = self.records[index]
            encoded = self._encode(record)
            positions = None if encoded is None else self._positions(encoded.input_ids, encoded.media)
            if positions is not None:
                self._check_positions(positions, record.name)
        except DataError as error:
            if self.max_bad_samples:
                report_left_out(error)
            return Outcome(None, truncated=False, error=error)
        if encoded is None or positions is None:
            return Outcome(None, truncated=True)
        row = self.row_of(encoded, positions, index)
        row.media, row.index, row.name = encoded.media, index, record.name
        return Outcome(row, encoded.truncated)

    def measure(self, index: int) -> tuple[int, int]:
        """Tokens and images of a row, without its pixels; (0, 0) if truncation leaves nothing to learn from.

        Rows of draft training, and those with answers of the model's own, are no longer than that.

        Raises:
            DataError: The record cannot be used.
        """
        encoded = self._encode(self.records[index], render=False)
        if encoded is None:
            return 0, 0
        length, supervised = len(encoded.input_ids), encoded.labels != IGNORED
        responses = int(supervised[:1].sum() + (supervised[1:] & ~supervised[:-1]).sum())
        if self.draft_seed is not None:  # the longest of the rows that it may become
            noisy = int(supervised.sum()) + responses * (self.config.block_size - 1)
            return length + self.views * noisy, encoded.images
        row = self.row_of(encoded, torch.empty(0, length, dtype=torch.long), index)
        if self.longest_answer is None:
            return len(row), encoded.images
        own = self.longest_answer + self.views * (self.longest_answer + self.config.block_size)
        return max(len(row), length + responses * own), encoded.images

    def collate(self, outcomes: list[Outcome | list[Outcome]]) -> dict[str, Any]:
        """Pads rows into a batch, without the records that became none; these are counted in the batch.

        If none is left, the batch is a row of one token that carries no loss, so that all processes take the same
        steps. `error` in the batch is the first record that may not be left out; the trainer raises it.

        Args:
            outcomes: For each row of the batch, what became of its record, or of its records if they are packed.
        """
        packs = [outcome if isinstance(outcome, list) else [outcome] for outcome in outcomes]
        rows = [[outcome.row for outcome in pack if outcome.row is not None] for pack in packs]
        rows = [pack for pack in rows if pack] or [[self._empty_row()]]
        batch = collate(
            rows,
            self.encoder.tokenizer.pad_token_id,
            placeholder_ids(self.base_config),
            self._smallest_image(),
            self.pad_to_multiple_of,
            self.least_width,
        )
        every = [outcome for pack in packs for outcome in pack]
        errors = [outcome.error for outcome in every if outcome.error is not None]
        counts = {
            "truncated": sum(outcome.truncated for outcome in every),
            "dropped": sum(outcome.truncated and outcome.row is None for outcome in every),
            "bad_samples": len(errors),
        }
        batch["error"] = errors[0] if errors and not self.max_bad_samples else None
        return batch | {name: torch.tensor(count) for name, count in counts.items()}

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; draft training cuts rows anew."""
        self.epoch = epoch

    def row_of(self, encoded: Encoded, positions: Tensor, index: int) -> Row:
        """The row of an encoded record; each view of draft training is cut into blocks of its own."""
        ids, end = encoded.input_ids, self.encoder.end_of_turn_id
        size = self.config.block_size if self.diffusion else 1
        causal = self.diffusion and self.config.clean_attention == "causal"
        mask_blocks = clean_blocks(self.config, ids) if causal else None
        if self.draft_seed is None:
            blocks = row_blocks(self.config, ids) if self.diffusion else self._token_blocks(ids)
            return build_row(ids, encoded.labels, blocks, positions, size, end, self.layout, self.views, mask_blocks)
        source, views = random.Random(f"{self.draft_seed}-{self.epoch}-{index}"), []
        for _ in range(self.views):
            blocks = draft_blocks(encoded.labels != IGNORED, size, source)
            views.append(build_row(ids, encoded.labels, blocks, positions, size, end, self.layout, 1, mask_blocks))
        return join_views(views)

    def _token_blocks(self, input_ids: Tensor) -> Tensor:
        """Block of each clean token [L] of an AR model: one each, but for images that are read whole."""
        blocks = torch.arange(len(input_ids))
        if reads_images_whole(self.base_config):
            return keep_whole(blocks, media_types(self.base_config, input_ids) > 0)
        return blocks

    def _empty_row(self) -> Row:
        """One token without a label."""
        token, zero = torch.tensor([self.encoder.tokenizer.pad_token_id]), torch.tensor([0])
        positions = torch.zeros(position_axes(self.base_config), 1, dtype=torch.long)
        return Row(token, torch.tensor([IGNORED]), zero, zero, positions, zero)

    def _smallest_image(self) -> Row | None:
        """A row of nothing but a smallest image, or None for a model that sees none."""
        if self._filler is None and placeholder_ids(self.base_config):
            input_ids, media = self.encoder.smallest_image()
            zeros = torch.zeros_like(input_ids)
            positions = sequential_positions(torch.ones_like(input_ids)[None], position_axes(self.base_config))[:, 0]
            labels = torch.full_like(input_ids, IGNORED)
            self._filler = Row(input_ids, labels, zeros, zeros, positions, torch.arange(len(input_ids)), media)
        return self._filler

    def _encode(self, record: Record, render: bool = True) -> Encoded | None:
        """A record as tokens; the model must be able to give its last answer itself, where it is going to be asked."""
        encoded = self.encoder.encode(record, render=render)
        if encoded is not None and self.longest_answer is not None:
            pictures = torch.isin(encoded.input_ids, torch.tensor(placeholder_ids(self.base_config))).nonzero()
            learned = (encoded.labels != IGNORED).nonzero()
            if len(pictures) and len(learned) and pictures[-1] > learned[-1]:
                raise DataError(
                    f"{record.name}: has a picture after its last answer that carries loss, and on_policy_from asks "
                    "for answers; take the picture out, or let an answer follow"
                )
        return encoded

    def _check_positions(self, positions: Tensor, name: str) -> None:
        """Refuses a row that goes on where the model knows no positions."""
        needed, known = int(positions.max()) + 1, position_limit(self.base_config)
        if known is not None and needed > known:
            raise DataError(
                f"{name}: needs {needed} positions, the model knows {known}; shorten it, or set max_length to {known}",
                "too long",
            )

    def _positions(self, input_ids: Tensor, media: dict[str, Any]) -> Tensor:
        """Positions [A, L] of a clean stream."""
        mask = torch.ones_like(input_ids)[None]
        if self.diffusion and self.config.position_mode == "sequential":
            return sequential_positions(mask, position_axes(self.base_config))[:, 0]
        if self._meta_base is None:  # the rope index reads the config alone, so no weights are needed
            with torch.device("meta"), set_zero3_state():  # else ZeRO-3 would spread it over the processes
                self._meta_base = auto_class(self.base_config).from_config(self.base_config)
        return native_positions(self._meta_base, input_ids[None], mask, media)[:, 0]
