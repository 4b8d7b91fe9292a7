"""Answers and what they cost: a batch of an AR or a block-diffusion model, or a stream of prompts through the engine.

Legend: B batch, P padded prompt, G generated tokens.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..modeling.engine import Engine
from ..modeling.errors import UserError
from ..modeling.request import Request
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


@dataclass
class _Going:
    """A prompt that is being answered."""

    key: int
    request: Request
    start: float
    cost: Cost = field(default_factory=lambda: Cost(answers=1))


def answer_continuously(
    engine: Engine, keys: Iterable[int], prompt: Callable[[int], Mapping[str, Any]]
) -> Iterator[tuple[int, Answered | UserError]]:
    """Hands the engine a prompt whenever it has a free row, and yields each answer as soon as it ends.

    A long answer does not hold back short ones, and no prompt is prepared before it is needed. The time of a step is
    shared out equally among the rows that take it.

    Args:
        engine: An engine that nobody else drives.
        keys: Names of the prompts.
        prompt: Returns the arguments of `Engine.add_request` for a prompt: its inputs [1, P] and settings.

    Yields:
        The key of a prompt with its answer, or with the error that keeps it from being answered.

    Raises:
        Exception: A bug, or an allocation that failed, while the model read a prompt.
    """
    coming, going = iter(keys), list[_Going]()
    while True:
        while len(going) < engine.max_batch_size and (key := next(coming, None)) is not None:
            try:
                request = engine.add_request(**_on_device(prompt(key), engine.model))
            except UserError as error:
                yield key, error
                continue
            going.append(_Going(key, request, time.perf_counter()))
        if not going:
            return
        begin = time.perf_counter()
        engine.step()
        end = time.perf_counter()
        for one in going:
            one.cost.seconds += (end - begin) / len(going)
            if one.request.tokens and not one.cost.first_seconds:
                one.cost.first_seconds = end - one.start
        for one in [one for one in going if one.request.finished]:
            going.remove(one)
            one.cost.tokens, one.cost.forwards = len(one.request.tokens), one.request.forwards
            yield one.key, _fault(one.request) or Answered(list(one.request.tokens), one.cost)


def _on_device(arguments: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Returns the arguments of a request with its tensors on the model's device."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    return {**arguments, **on_model(tensors, model)}


def _fault(request: Request) -> UserError | None:
    """Returns what has kept a request from being answered, and raises it if the user cannot mend it."""
    if request.error is not None and not isinstance(request.error, UserError):
        raise request.error
    if request.finish_reason == "not_a_number":
        return UserError("the model's scores are not numbers; load it in float32 or bfloat16, and check its weights")
    return request.error
