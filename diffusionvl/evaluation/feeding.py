"""Prompts that are handed to an engine as rows become free.

Legend: P tokens of a prompt.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import BatchFeature

from ..data.prompts import pad_left
from ..modeling.arrivals import joinable
from ..modeling.engine import Engine
from ..modeling.errors import UserError
from ..modeling.request import Request
from .costs import Cost
from .decoding import Answered, on_model

SHARE = 4  # prompts are handed over when 1 / SHARE of the rows are free, since it costs less to read several together


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
    """Hands the engine prompts whenever it has rows for them, and yields each answer as soon as it ends.

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
        free, handed = engine.max_batch_size - len(going), 0
        if free >= engine.max_batch_size / SHARE or not going:
            for key, request in _hand_over(engine, coming, prompt, free):
                handed += 1
                if isinstance(request, UserError):
                    yield key, request
                else:
                    going.append(_Going(key, request, time.perf_counter()))
        if not going and not handed:
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


class _Asked:
    """A prompt that is about to be handed over.

    Attributes:
        key: Its name.
        inputs: Its tensors.
        settings: All other arguments of `Engine.add_request` but its generator.
        generator: Its source of randomness.
    """

    def __init__(self, key: int, arguments: Mapping[str, Any]) -> None:
        self.key, self.settings = key, dict(arguments)
        self.inputs = {name: self.settings.pop(name) for name in arguments if isinstance(arguments[name], Tensor)}
        self.generator = self.settings.pop("generator", None)

    @property
    def length(self) -> int:
        """P."""
        return self.inputs["input_ids"].shape[1]

    @property
    def media(self) -> dict[str, Tensor]:
        """The inputs that do not have a value for each token."""
        return {name: value for name, value in self.inputs.items() if value.shape != self.inputs["input_ids"].shape}

    def joins(self, group: "list[_Asked]", engine: Engine) -> bool:
        """Whether one call can take it in with others, as it would be taken in alone; `max_length` counts padding."""
        first, longest = group[0], max(one.length for one in (self, *group))
        return (
            self.settings == first.settings
            and self.inputs.keys() == first.inputs.keys() > {"attention_mask"}
            and joinable(self.media, first.media)
            and longest * (len(group) + 1) <= engine.prefill_tokens
            and self.settings.get("max_length") is None
            and engine.model.generation_config.max_length is None
        )


def _hand_over(
    engine: Engine, coming: Iterator[int], prompt: Callable[[int], Mapping[str, Any]], free: int
) -> Iterator[tuple[int, Request | UserError]]:
    """Prepares prompts for the rows that are free, and adds those together that one call can take in."""
    group = list[_Asked]()
    while free and (key := next(coming, None)) is not None:
        try:
            one = _Asked(key, prompt(key))
        except UserError as error:
            yield key, error
            continue
        free -= 1
        if group and not one.joins(group, engine):
            yield from _add(engine, group)
            group = []
        group.append(one)
    yield from _add(engine, group)


def _add(engine: Engine, group: list[_Asked]) -> Iterator[tuple[int, Request | UserError]]:
    """Adds prompts in one call; if it is refused, each in its own."""
    if not group:
        return
    inputs = pad_left([BatchFeature(one.inputs) for one in group], engine.model.config.pad_token_id or 0)
    generators = [one.generator for one in group]
    try:
        requests = engine.add_batch(**on_model(inputs, engine.model), generator=generators, **group[0].settings)
    except UserError as error:
        if len(group) == 1:
            yield group[0].key, error
        for one in group if len(group) > 1 else []:
            yield from _add(engine, [one])
    else:
        yield from zip([one.key for one in group], requests, strict=True)


def _fault(request: Request) -> UserError | None:
    """Returns what has kept a request from being answered, and raises it if the user cannot mend it."""
    if request.error is not None and not isinstance(request.error, UserError):
        raise request.error
    if request.finish_reason == "not_a_number":
        return UserError("the model's scores are not numbers; load it in float32 or bfloat16, and check its weights")
    return request.error
