"""On-policy training: the model answers the prompts of a batch itself, with the weights of this step.

Nothing is kept from one step to the next: the answers follow from the weights, the batch, the seed and the step, so a
run that was killed goes on from its last checkpoint as if nothing had happened.

Legend: A axes of a position, B rows, T tokens of a row, K documents, L clean tokens of a document.
"""

import random
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..data.conversation import Encoded
from ..data.record import Record, Records
from ..data.streams import IGNORED, Row
from ..modeling.block_masks import CLEAN
from ..modeling.engine import Engine
from ..modeling.families import placeholder_ids, position_limit
from ..modeling.generation_diffusionvl import check_answers
from ..modeling.request import Request
from .arguments import BlockDiffusionConfig
from .dataset import Outcome, RowDataset
from .losses import fill_distance
from .next_tokens import COUNTS, TAGS


class Prompts:
    """Records that the model answers itself: one that ends with another's turn gets an answer without text.

    Args:
        records: Records, with or without answers.
    """

    def __init__(self, records: Records | list[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        if record.messages[-1]["role"] == "assistant":
            return record
        empty = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
        return replace(record, messages=[*record.messages, empty])


@dataclass
class Conversation:
    """A document of a batch in which the model gives the answers, one after another.

    Attributes:
        row: Row of the batch that the document stands in.
        ids: Its tokens so far [L].
        positions: [A, L].
        later: What the record says after each answer that is still to be given; nothing after the last one.
        starts: Where the answers begin, in `ids`.
        answers: Their tokens, the end of a turn included.
        written: Of each answer up to the end of its last block, the step of its block, from 0, that wrote the token.
        forwards: Number of forwards that the answers took.
    """

    row: int
    ids: Tensor
    positions: Tensor
    later: list[Tensor]
    starts: list[int] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)
    forwards: int = 0

    def take(self, request: Request, end_of_turn: int, room: int) -> None:
        """Takes an answer; one that is cut ends the conversation.

        Args:
            request: The answer, with its history.
            end_of_turn: Id that ends a turn.
            room: Number of tokens that are left.
        """
        start, answer = len(self.ids), torch.tensor(request.tokens[:room])
        columns = torch.cat([step.columns[0] for step in request.history]) - start
        masked = torch.cat([step.masked[0] for step in request.history])[columns >= 0].long()
        # A token that is masked after n steps of its block is written by step n, from 0.
        written = torch.zeros(int(columns.max()) + 1, dtype=torch.long).index_add(0, columns[columns >= 0], masked)
        self.starts.append(start)
        self.answers.append(answer)
        self.written.append(written)
        self.forwards += request.forwards
        following = self.later.pop(0)
        if self.later:
            if int(answer[-1]) == end_of_turn and len(answer) + len(following) < room:
                answer = torch.cat([answer, following])
            else:
                self.later = []
        new = self.positions.max() + 1 + torch.arange(len(answer))
        self.ids = torch.cat([self.ids, answer])
        self.positions = torch.cat([self.positions, new.expand(len(self.positions), -1)], dim=1)

    @property
    def labels(self) -> Tensor:
        """The token itself in an answer of the model's own, else -100 [L]."""
        labels = torch.full_like(self.ids, IGNORED)
        for start, answer in zip(self.starts, self.answers, strict=True):
            labels[start : start + len(answer)] = answer
        return labels


def with_own_answers(
    model: PreTrainedModel, dataset: RowDataset, batch: dict[str, Any], args: BlockDiffusionConfig, step: int
) -> tuple[dict[str, Any], list[Conversation]]:
    """The batch with the model's own answers in place of those that carry loss, and its conversations.

    Of a document with pictures, these are the answers after the last picture; the others stay, and carry no loss.

    Args:
        model: Its own generation config says how it decodes.
        dataset: Makes the rows.
        batch: From `RowDataset.collate`, with noisy streams.
        args: `seed` and `on_policy_tokens` are read.
        step: Optimizer step; draws depend on the seed, the step and the document's index in the data set alone.

    Returns:
        A batch as of `RowDataset.collate` that also holds `written`, the step of its block, from 0, in which each token
        was written [B, T]; and the K conversations.

    Raises:
        UserError: The model's scores are not numbers.
    """
    shown = torch.tensor(placeholder_ids(dataset.base_config), dtype=torch.long)
    conversations = conversations_of(batch, shown)
    media: dict[str, Tensor] = {}
    if any(torch.isin(one.ids, shown).any() for one in conversations):  # else the batch's picture is its padding's
        media = {name: value for name, value in batch.items() if name not in (*TAGS, *COUNTS, "error")}
    rows = batch["rows"].tolist()
    names = [f"{args.seed}-{step}-{row}-answer" for row in rows]
    draws = [torch.Generator(model.device).manual_seed(random.Random(name).getrandbits(63)) for name in names]
    training = model.training
    model.eval()
    while any(one.later for one in conversations):
        _answer(model, dataset, conversations, media, draws, args.on_policy_tokens)
    model.train(training)
    packs: list[Any] = [[] for _ in batch["input_ids"]]
    for one, index in zip(conversations, rows, strict=True):
        packs[one.row].append(Outcome(_row(dataset, one, index), truncated=False))
    packs[0][0].row.media = media  # of all documents, in their order
    made = dataset.collate(packs)
    made["written"] = _written(made, conversations)
    device = batch["input_ids"].device
    made = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in made.items()}
    return {**made, **{name: batch[name] for name in (*COUNTS, "error")}}, conversations


def conversations_of(batch: dict[str, Any], placeholders: Tensor) -> list[Conversation]:
    """The conversations of a batch's K documents before the first answer, on the CPU.

    Args:
        batch: From `RowDataset.collate`, with noisy streams.
        placeholders: Ids that stand for images and videos; none comes after a document's last answer with loss.
    """
    names = ("input_ids", "labels", "document_ids", "stream_ids", "position_ids", "twins")
    ids, labels, documents, streams, positions, twins = (batch[name].cpu() for name in names)
    copied = (labels != IGNORED) & (fill_distance({"position_ids": positions, "twins": twins}) == 0)
    learnt = torch.zeros(ids.numel(), dtype=torch.bool).index_fill(0, twins[copied], True).view_as(ids)
    found = []
    for document in range(len(batch["rows"])):
        row, places = ((documents == document) & (streams == CLEAN)).nonzero().T
        own = ids[row, places]
        edges = torch.nn.functional.pad(learnt[row, places], (1, 1)).int().diff()
        begins, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
        last_picture = max(torch.isin(own, placeholders).nonzero()[:, 0].tolist(), default=-1)
        given = sum(begin < last_picture for begin in begins)  # answers that stay
        nexts = [*begins[given:], *ends[-1:], len(own)]
        later = [own[end:begin] for end, begin in zip(ends[given:], nexts[1:], strict=False)]
        found.append(Conversation(int(row[0]), own[: nexts[0]], positions[:, row, places][:, : nexts[0]], later))
    return found


def _answer(
    model: PreTrainedModel,
    dataset: RowDataset,
    conversations: list[Conversation],
    media: dict[str, Tensor],
    draws: list[torch.Generator],
    longest: int,
) -> None:
    """Gives the next answer in all conversations that wait for one.

    The others come along for the sake of the pictures, which are in one piece.
    """
    ids = pad_sequence([one.ids for one in conversations], batch_first=True, padding_side="left")
    real = pad_sequence([torch.ones_like(one.ids) for one in conversations], batch_first=True, padding_side="left")
    count, size = len(conversations), model.config.block_size
    fused = model.generation_config.fused_commit
    engine = Engine(model, count, ids.shape[1] + longest + size, count, fused_commit=fused)
    given: dict[str, Any] = {"decoding": "denoise", "block_size": size, "max_new_tokens": longest, **media}
    given |= {"stop_strings": None, "max_time": None, "output_history": True}
    requests = engine.add_batch(ids.to(model.device), real.to(model.device), generator=draws, **given)
    waiting = [(one, request) for one, request in zip(conversations, requests, strict=True) if one.later]
    for one, request in zip(conversations, requests, strict=True):
        if not one.later:
            engine.abort(request)
    while engine.busy:
        engine.step()
    check_answers([request for _, request in waiting])
    for one, request in waiting:
        one.take(request, dataset.encoder.end_of_turn_id, _room(dataset, one))


def _room(dataset: RowDataset, conversation: Conversation) -> int:
    """Number of tokens that a conversation may still get."""
    limits = dataset.encoder.max_length, position_limit(dataset.base_config)
    used = len(conversation.ids), int(conversation.positions.max()) + 1
    return min((limit - own for limit, own in zip(limits, used, strict=True) if limit is not None), default=sys.maxsize)


def _row(dataset: RowDataset, conversation: Conversation, index: int) -> Row:
    """The row of a conversation."""
    encoded = Encoded(conversation.ids, conversation.labels, {}, 0, truncated=False)
    row = dataset.row_of(encoded, conversation.positions, index)
    row.index = index
    return row


def _written(batch: dict[str, Any], conversations: list[Conversation]) -> Tensor:
    """Step of its block, from 0, in which each token of a batch was written; 0 where none wrote it. [B, T]"""
    written, fill = torch.zeros_like(batch["input_ids"]), fill_distance(batch)
    for document, one in enumerate(conversations):
        own = (batch["document_ids"] == document) & (batch["stream_ids"] != CLEAN)
        if not own.any():
            continue
        twins = batch["twins"][own] - int((batch["document_ids"].flatten() == document).nonzero()[0])
        starts = torch.tensor(one.starts)
        turn = torch.searchsorted(starts, twins, right=True) - 1
        table = pad_sequence(one.written, batch_first=True)
        place = twins - starts[turn] + fill[own]
        written[own] = table[turn.clamp(min=0), place.clamp(0, table.shape[1] - 1)]  # prompts may share a block
    return written
