"""Autoregressive and speculative decoding: the clean stream writes tokens one after another, masks draft the next ones.

Legend: C columns, P prompt tokens, K draft size.
"""

from collections.abc import Callable

from .canvas import Canvas, Prompt, Shown
from .draft_pace import DraftPace


class DraftCanvas(Canvas):
    """A row whose pending tokens are one that is certain and drafts after it; K masks stand after them.

    A step chooses, by the clean stream, the token after each pending one, and by the masks, in place, those after
    them. Drafts are right as long as they are what the clean stream chooses; its choice after the last right one is
    written, too. So a step writes one token at least, and what it writes is what the clean stream alone would write.
    With K = 0 that is autoregressive decoding. With K = 3 and drafts `d e` of which the first is right::

        pending  c  d  e |M  M  M|
        chosen   d  x  .  .  .  .      `d x` is written; x is the next step's only pending token

    Args:
        prompt: The prompt; its tokens are pending and certain.
        mask_token_id: The id of a masked token.
        draft_size: K, the largest number of masks.
        pace: Chooses the number of masks of each step; always K if left out.
        longest: Number of tokens of the longest answer; nothing is drafted after it.
        careful: Whether close choices may come, which are made again by a forward of one token.

    Attributes:
        sure: First column whose token is not certain.
        lengths: Number of tokens that each step has written.
    """

    def __init__(
        self,
        prompt: Prompt,
        mask_token_id: int,
        draft_size: int,
        longest: int,
        pace: DraftPace | None = None,
        careful: bool = False,
    ) -> None:
        super().__init__(prompt, mask_token_id)
        self.draft_size, self.most = draft_size, len(prompt.ids) + longest
        self.pace, self.luck = pace, None if pace is None else pace.luck()
        self.sure = len(prompt.ids)
        self._width = max(2 * draft_size, 1)  # of a film's window
        self.lengths: list[int] = []
        self._draft([], alone=careful)

    @property
    def wanted(self) -> list[int]:
        """The pending columns from the last certain one on, and the masks after the first.

        The first mask stands where the last pending token's successor will stand, which that token predicts itself.
        """
        return [*range(self.sure - 1, self.window), *range(self.window + 1, self.end)]

    @property
    def targets(self) -> list[int]:
        """The next column for a clean token, its own for a mask."""
        return [*range(self.sure, self.window + 1), *range(self.window + 1, self.end)]

    @property
    def known(self) -> list[int]:
        """All that comes before it for a clean token's target; the pending tokens for a mask."""
        return [min(target, self.window) for target in self.targets]

    @property
    def drafts(self) -> list[int]:
        """The drafts that are pending."""
        return self.ids[self.sure : self.window]

    written = drafts

    @property
    def open_places(self) -> int:
        """Number of tokens of a film's window."""
        return self._width

    def columns_needed(self, new: int) -> int:
        """Columns of the row with an answer of `new` tokens."""
        return len(self.prompt.ids) + new

    def see(self) -> None:
        """The cache holds the tokens that are certain; `write` adds the drafts that are right."""
        self.kept, self.read = self.sure, True

    def write(self, tokens: list[int], keep: list[bool]) -> list[int]:
        """Compares drafts with choices; returns the right ones and the choice after them.

        Args:
            tokens: One for each wanted column.
            keep: Whether each is chosen clearly; a close choice is left to a step of its own, which drafts nothing.
        """
        drafts = self.written
        chosen, drawn = tokens[: len(drafts) + 1], tokens[len(drafts) + 1 :]
        alone = not drafts and self.end == self.window
        right = 0
        while right < len(drafts) and keep[right] and drafts[right] == chosen[right]:
            right += 1
        clear = alone or keep[right]
        new = chosen[: right + clear]
        if self.pace is not None and self.luck is not None:
            self.pace.note_drafts(len(drafts), right)
            self.luck.note(len(drafts), right)
        if self.kept == self.sure:
            self.kept += len(new) - 1
        del self.ids[self.sure :]
        self.ids += new
        self.lengths.append(len(new))
        self._draft(drawn if clear and right == len(drafts) else [], alone=not clear)
        self._show(len(new))
        return new

    def append(self, tokens: list[int]) -> list[int]:
        """Writes tokens in the place of the next drafts, pending and certain; returns them."""
        drafts, alone = self.drafts, self._alone
        del self.ids[self.sure :]
        self.ids += tokens
        self._draft(drafts[len(tokens) :], alone)
        self._show(len(tokens))
        return tokens

    def mend(self, mend: Callable[[list[int]], list[int]]) -> None:
        """Replaces the drafts by what a function makes of them, which may be fewer."""
        drafts, alone = self.drafts, self._alone
        del self.ids[self.sure :]
        self._draft(mend(drafts), alone)

    def _show(self, new: int) -> None:
        """Shows the tokens that were written and the drafts after them in a window of fixed width, and moves on."""
        width = self._width
        tokens = [*self.ids[self.sure : self.window], *[self.mask_token_id] * width][:width]
        columns = range(self.sure, self.sure + width)
        self.shown = Shown(self.block, columns, tokens, [place >= new for place in range(width)])
        self.sure += new
        self.block += 1

    def _draft(self, drafts: list[int], alone: bool = False) -> None:
        """Appends drafts and, unless the next step is to be alone, the masks that draft the tokens after them."""
        self._alone = alone
        self.ids += drafts
        self.window = len(self.ids)
        size = self.draft_size
        if self.pace is not None and self.luck is not None:
            size = self.pace.choose(size, self.luck)
        masks = min(size, self.most - 1 - self.window)  # the last token is chosen, not drafted
        masks = masks if masks > 1 and not alone else 0  # the first mask drafts nothing
        self.ids += [self.mask_token_id] * masks
        self.end, self.step = len(self.ids), int(bool(drafts))
