"""Where a constrained answer stands in its grammar, and which tokens may come next.

llguidance does the work (`grammar.py` compiles what it is given).

Legend: N places that get a bitmask, W words of 32 tokens, V rows of the logits.
"""

import os
from collections.abc import Sequence
from copy import copy
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import UserError

try:  # noqa: SIM105  (transformers finds imports that are guarded by `try`)
    from llguidance import LLExecutor
except ImportError:
    pass  # `grammar.py` reports it where an answer is to be constrained

if TYPE_CHECKING:
    from .grammar import Vocabulary


class Constraint:
    """Where one answer stands in its grammar.

    Every token that is written is a step in the grammar, so that the answer can always be completed. Tokens that must
    come next whatever the model says are `forced`: they are known without a forward.

    Args:
        matcher: llguidance's matcher, which stands after the answer and its forced tokens.
        vocabulary: The tokens.
        longest: Number of tokens of the longest answer.

    Attributes:
        forced: Tokens that must come next.
        length: Number of tokens of the answer so far.
        free: Places of the answer, from 0, whose tokens the model chose; the others were forced.
        ended: Whether the answer holds an end of sequence, which comes only where the grammar is satisfied.
        plan: The forced token at each draft that fits and at the place after these, None where the model chooses.
        ahead: Matchers that stand at those of these places where the model chooses.

    Raises:
        UserError: The grammar is too complex to go on.
    """

    def __init__(self, matcher: Any, vocabulary: "Vocabulary", longest: int) -> None:
        self.matcher, self.vocabulary, self.longest = matcher, vocabulary, longest
        self.forced: list[int] = []
        self.length, self.ended = 0, False
        self.free: set[int] = set()
        self.plan: list[int | None] = []
        self.ahead: dict[int, Any] = {}
        self._look_ahead()

    def copy(self, longest: int | None = None) -> "Constraint":
        """Another one that stands at the same place, with another longest answer if one is given."""
        other = copy(self)
        other.matcher, other.forced, other.free = self.matcher.deep_copy(), [*self.forced], set()
        other.longest = self.longest if longest is None else longest
        return other

    def accepts(self, token: int) -> bool:
        """Whether a token may come next."""
        if self.ended or self.forced:
            return not self.ended and token == self.forced[0]
        if token in self.vocabulary.ends:
            return bool(self.matcher.is_accepting())
        return self.vocabulary.permits(token) and self.matcher.validate_tokens([token]) == 1

    def advance(self, token: int) -> None:
        """Takes the next token of the answer.

        Raises:
            UserError: It may not come next, or the grammar is too complex to go on.
        """
        if not self.accepts(token):
            self.check()
            raise UserError(f"the token {token} does not fit the answer's constraint")
        self.ended = token in self.vocabulary.ends
        if self.forced:
            self.forced.pop(0)
        else:
            self.free.add(self.length)
            if not self.ended:
                self.matcher.consume_token(token)
                self._look_ahead()
        self.length += 1

    def take(self) -> list[int]:
        """Takes the forced tokens, as many as the longest answer has room for."""
        taken = self.forced[: max(self.longest - self.length, 0)]
        for token in taken:
            self.advance(token)
        return taken

    def settle(self, tokens: Sequence[int], keep: Sequence[bool]) -> list[int]:
        """Takes tokens that were drawn side by side, up to the first that is not kept or does not fit.

        The first one is taken in any case, so that every step writes a token; forced tokens replace what was drawn.

        Args:
            tokens: Tokens of consecutive places; the first was drawn among those that may come next.
            keep: Whether remasking keeps each.

        Returns:
            The tokens that were taken.
        """
        taken: list[int] = []
        for place, token in enumerate(tokens):
            token = self.forced[0] if self.forced else token
            if self.ended or (place > 0 and not self.forced and not (keep[place] and self.accepts(token))):
                break
            self.advance(token)
            taken.append(token)
        return taken

    def mend(self, drafts: Sequence[int]) -> list[int]:
        """Drafts with forced tokens in their places, up to the first that does not fit."""
        ahead, mended = self.copy() if drafts else self, list[int]()
        for draft in drafts:
            token = ahead.forced[0] if ahead.forced else draft
            if not ahead.accepts(token):
                break
            ahead.advance(token)
            mended.append(token)
        return mended

    def look(self, drafts: Sequence[int]) -> None:
        """Plans the places of the drafts that fit, and the place after them.

        It ends at the first draft that does not fit and at an end of sequence: no choice after those counts.
        """
        ahead, self.plan, self.ahead = self.copy() if drafts else self, [], {}
        for place, draft in enumerate([*drafts, None]):
            if ahead.ended:
                break
            self.plan.append(ahead.forced[0] if ahead.forced else None)
            if not ahead.forced:
                self.ahead[place] = ahead.matcher if draft is None else ahead.matcher.deep_copy()
            if draft is None or not ahead.accepts(draft):
                break
            ahead.advance(draft)

    def check(self, possible: bool = True) -> None:
        """Checks that the grammar can go on.

        Args:
            possible: Whether some token may come at each place of the plan.

        Raises:
            UserError: It is too complex, or no token may come next.
        """
        if self.matcher.is_error():
            reason = " ".join(self.matcher.get_error().split())
            raise UserError(f"the answer's constraint cannot go on: {reason}; give a simpler one")
        if not possible:
            raise UserError(
                "the answer's constraint asks for a text that no tokens of an answer spell, such as a special token"
            )

    def _look_ahead(self) -> None:
        """Finds the tokens that must come next, and moves the matcher after them."""
        while len(self.forced) < self.longest:
            self.check()
            if self.matcher.is_stopped():
                self.forced.append(self.vocabulary.ends[0])
                return
            run = [*takewhile(self.vocabulary.permits, self.matcher.compute_ff_tokens()[: self.longest])]
            if not run or not self.matcher.consume_tokens(run):
                self.check()
                return
            self.forced += run


def fill_bitmasks(rows: Sequence[Constraint]) -> Tensor:
    """The tokens that may come next, for several rows in parallel.

    Args:
        rows: Constraints of one tokenizer, each after a `look`.

    Returns:
        Bitmasks of the places of each row's plan, as words of 32 bits [N, W]; all that can be written where a token is
        forced.
    """
    written = torch.stack([row.vocabulary.written for row in rows for _ in row.plan])
    bits, jobs, start = torch.full_like(written, -1), list[tuple[Any, int]](), 0
    for row in rows:
        jobs += [(matcher, start + place) for place, matcher in row.ahead.items()]
        start += len(row.plan)
    _executor(os.getpid()).unsafe_compute_mask_ptr(jobs, bits.data_ptr(), 4 * bits.shape[1], len(bits))
    return bits & written


@cache
def _executor(process: int) -> Any:
    """The threads that fill bitmasks; a process that was forked has to start its own."""
    return LLExecutor()


def unpack(bits: Tensor, size: int) -> Tensor:
    """Bitmasks [N, W] as booleans [N, V]; tokens that the tokenizer does not have are not allowed."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = (bits[:, :, None] >> shifts & 1).bool().flatten(1)[:, :size]
    return torch.nn.functional.pad(allowed, (0, size - allowed.shape[1]))
