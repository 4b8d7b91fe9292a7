"""A request: one prompt's settings, the answer it has so far, and where that answer ends."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .sampling import Sampling


@dataclass
class DenoisingStep:
    """One denoising step of a batch, as it leaves the block.

    Attributes:
        block: Index of the window, from 0.
        tokens: [B, D], the mask id where still masked.
        masked: Which places are still masked [B, D].
        confidence: Confidence of this step's draws [B, D]; 1 where nothing was drawn.
        columns: Column of each place in the padded row, prompt included [B, D].
    """

    block: int
    tokens: Tensor
    masked: Tensor
    confidence: Tensor
    columns: Tensor


class Chunk(NamedTuple):
    """A part of an answer that `Engine.stream` yields.

    Attributes:
        tokens: Tokens that follow those before them for good; of a draft, the block as it is, with mask tokens.
        draft: Whether the next chunk replaces these tokens.
    """

    tokens: list[int]
    draft: bool = False


FinishReason = Literal["eos", "stop_string", "length", "time", "abort", "error", "not_a_number"]


@dataclass(eq=False)
class Request:
    """What `Engine.add_request` hands out. The engine writes it; everybody else reads.

    Attributes:
        settings: How this prompt is answered.
        prompt_length: Tokens of the prompt.
        generator: Source of randomness where the temperature is not 0; torch's own if left out.
        deadline: When its time is up, by the engine's clock.
        tokens: The answer so far: whole blocks, and at its end an end of sequence or the token that completes a stop
            string.
        finish_reason: Why the answer ended: `eos`, `stop_string`, `length`, `time`, `abort`, `error` where the model
            could not read the prompt, or `not_a_number` where its scores were not; None while it goes on.
        error: What the model raised, with `error`.
        forwards: Forwards that it took part in, reading the prompt included.
        block: Index of the block that is being denoised.
        step: Denoising steps that this block has had.
        history: The denoising steps, [1, D] each, with `output_history`; columns count from the prompt's first token.
    """

    settings: DiffusionVLGenerationConfig
    prompt_length: int
    generator: torch.Generator | None = None
    deadline: float = float("inf")
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    forwards: int = 0
    block: int = 0
    step: int = 0
    history: list[DenoisingStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampling = Sampling(*(getattr(self.settings, name) for name in Sampling._fields))

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    def take(self, block: list[int], tokenizer: Any) -> None:
        """Appends a finished block, up to the end of the answer if it is in it.

        Args:
            block: Its tokens, without those of the prompt.
            tokenizer: Decodes the answer to look for stop strings; not needed without.
        """
        self.tokens, self.finish_reason = end_of_answer(self.tokens, block, self.settings, tokenizer)
        self.block, self.step = self.block + 1, 0


class Ended(NamedTuple):
    """An answer, and why it ends there; None if it does not."""

    tokens: list[int]
    reason: FinishReason | None


def end_of_answer(
    before: list[int], block: list[int], settings: DiffusionVLGenerationConfig, tokenizer: Any = None
) -> Ended:
    """Cuts an answer behind the first token that ends it: an end of sequence, a stop string, or the longest length.

    Args:
        before: Tokens of the answer that do not end it.
        block: Tokens that come behind them.
        settings: `eos_token_id`, `stop_strings` and `max_new_tokens` are read.
        tokenizer: Needed with `stop_strings`, which may begin in one block and end in another.
    """
    tokens = [*before, *block][: settings.max_new_tokens]
    reason: FinishReason | None = "length" if len(tokens) == settings.max_new_tokens else None
    ends = settings.eos_token_ids
    for index in range(len(before), len(tokens)):
        if tokens[index] in ends:
            tokens, reason = tokens[: index + 1], "eos"
            break
    if settings.stop_strings and _stops(tokens, settings, tokenizer):
        for end in range(len(before) + 1, len(tokens) + 1):
            if _stops(tokens[:end], settings, tokenizer):
                return Ended(tokens[:end], "stop_string")
    return Ended(tokens, reason)


def _stops(tokens: list[int], settings: DiffusionVLGenerationConfig, tokenizer: Any) -> bool:
    """Whether the text of these tokens holds a stop string."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return any(stop in text for stop in settings.stop_string_list)
