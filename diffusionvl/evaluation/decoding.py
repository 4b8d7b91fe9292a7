"""Answers of a batch, by an AR or a block-diffusion model, and what they cost.

Legend: B batch, P padded prompt, G generated tokens.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from . import BLOCK_DIFFUSION
from .costs import Cost
from .kinds import kind_of


class Answered(NamedTuple):
    """One answer.

    Attributes:
        tokens: Generated ids, the end of sequence included.
        cost: What it cost.
    """

    tokens: list[int]
    cost: Cost


class Generated(NamedTuple):
    """Answers of a batch.

    Attributes:
        new: Generated ids [B, G].
        lengths: Tokens of each answer, its end of sequence included [B].
        forwards: Forwards that each row took part in [B].
        seconds: Time inside `generate`.
        first_seconds: Time until the first tokens were there: an AR model's first one, or the first block.
    """

    new: Tensor
    lengths: Tensor
    forwards: Tensor
    seconds: float
    first_seconds: float

    @property
    def cost(self) -> Cost:
        """The cost of the whole batch."""
        rows = len(self.lengths)
        return Cost(rows, int(self.lengths.sum()), int(self.forwards.sum()), self.seconds, self.first_seconds * rows)

    def row(self, row: int) -> Answered:
        """One answer; the time of the batch is shared out equally."""
        length = int(self.lengths[row])
        share = self.seconds / len(self.lengths)
        cost = Cost(1, length, int(self.forwards[row]), share, self.first_seconds)
        return Answered(self.new[row, :length].tolist(), cost)


class FirstTokens(BaseStreamer):
    """A streamer that notes when the first tokens after the prompt come out."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: float | None = None
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then tokens."""
        if self.prompt_seen and self.seconds is None:
            self.seconds = time.perf_counter() - self.start
        self.prompt_seen = True

    def end(self) -> None:
        """Does nothing; transformers calls it at the end."""


def on_model(inputs: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs on the model's device; pictures in the type of its weights."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def answer_batch(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    until: Sequence[str] = (),
    tokenizer: Any = None,
    **settings: Any,
) -> Generated:
    """Answers a batch: an AR model greedily with a KV cache, a block-diffusion model by its own settings.

    Args:
        model: Of either kind, in eval mode.
        inputs: What `data.prompts.encode` returned.
        until: Texts that end an answer; the tokens that hold them belong to it.
        tokenizer: Decodes the answers to look for `until`; not needed without.
        **settings: Arguments of the model's `generate`.
    """
    inputs = on_model(inputs, model)
    prompt_length = inputs["input_ids"].shape[1]
    diffusion = kind_of(model) == BLOCK_DIFFUSION
    if not diffusion:
        settings = {"do_sample": False, "use_cache": True, **settings}
    if until:
        settings |= {"stop_strings": list(until), "tokenizer": tokenizer}
    first = FirstTokens()
    output: Any = model.generate(**inputs, return_dict_in_generate=True, streamer=first, **settings)
    new = output.sequences[:, prompt_length:].cpu()  # also waits for the device
    seconds = time.perf_counter() - first.start
    if diffusion:
        forwards = output.forwards.cpu()
        lengths = (output.tokens_per_forward.cpu() * forwards).round().long()
    else:  # its prefill gives the first token, so its forwards are its tokens
        forwards = lengths = answer_lengths(new, model)
    return Generated(new, lengths, forwards, seconds, first.seconds or seconds)


def answer_lengths(new: Tensor, model: PreTrainedModel) -> Tensor:
    """Counts the tokens of each AR answer [B] in generated ids [B, G], with its end of sequence, without padding."""
    config = model.generation_config
    eos = torch.tensor([config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id or [])
    ended = torch.isin(new, eos)
    over = ended | (new == config.pad_token_id if config.pad_token_id is not None else ended)
    first = over.long().argmax(-1)
    # An answer that a text has ended is padded, but has no end of sequence.
    with_end = first + ended.gather(-1, first[:, None])[:, 0]
    return torch.where(over.any(-1), with_end, new.shape[1])
