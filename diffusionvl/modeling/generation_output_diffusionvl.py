"""What `generate` and the streams of an engine give back.

Legend: B batch, P padded prompt, G generated tokens, D block size.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


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


@dataclass
class DiffusionVLGenerationOutput(ModelOutput):
    """Output of `generate`.

    Attributes:
        sequences: Prompts and answers [B, P + G]; padded behind each row's end of sequence.
        tokens_per_forward: Answer tokens (the end of sequence counts, padding does not) a forward, for each row [B].
        forwards: Forwards that each row took part in, reading the prompt included [B].
        past_key_values: The KV cache.
        history: The denoising steps, with `output_history`.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    forwards: Tensor | None = None
    past_key_values: Cache | None = None
    history: list[DenoisingStep] | None = None
