"""The number of masks that a row drafts with: as many as pay, by what forwards cost and how often drafts are right."""

from dataclasses import dataclass
from itertools import combinations
from statistics import median

FORGET = 0.97  # what an observation weighs after one more
LEARN, PROBE = 8, 2  # masks while costs are unknown, and of a row that tries whether drafting pays again
REFIT = 16  # forwards after which their costs are summed up again
MARGIN = 1.03  # of what is gained before drafts are made: costs and chances are estimates
PATIENCE = 32  # steps without drafts before a row tries again; doubled by each try in vain


@dataclass
class Luck:
    """How often the drafts of a row are right.

    Attributes:
        right: Drafts that were right, older ones counting less.
        tried: Drafts that were right, or the first wrong one after them.
        idle: Steps since this row last drafted.
        patience: Steps without drafts before it tries again.
    """

    right: float
    tried: float
    idle: int = 0
    patience: int = PATIENCE

    @property
    def chance(self) -> float:
        """Estimated probability that a draft is right if those before it are."""
        return min(self.right / self.tried, 0.99)

    def note(self, drafted: int, right: int) -> None:
        """Counts what a step found out about `drafted` drafts, of which the first `right` were right."""
        if not drafted:
            self.idle += 1
            return
        self.idle, self.patience = 0, PATIENCE if right else min(2 * self.patience, 256)
        self.right = self.right * FORGET + right
        self.tried = self.tried * FORGET + right + (right < drafted)


class DraftPace:
    """What the forwards of a model have cost, and how often its drafts were right, over all rows.

    Attributes:
        rows: Number of rows that the next step runs.
    """

    def __init__(self) -> None:
        self.rows = 1
        self._costs: dict[int, tuple[float, int]] = {}  # by number of tokens: least seconds, times seen
        self._all = Luck(1.0, 1.5)
        self._fit: tuple[float, float] | None = None
        self._unfitted = 0  # costs that have come since the line was fitted

    def luck(self) -> Luck:
        """What is expected of a new row: what other rows had. It tries again when one of them would have."""
        return Luck(2 * self._all.chance, 2.0, self._all.idle, self._all.patience)

    def note_cost(self, tokens: int, seconds: float) -> None:
        """Counts one forward. Its cost is the least that has been seen, which noise cannot lower, slowly forgotten."""
        least, seen = self._costs.get(tokens, (seconds, 0))
        self._costs[tokens] = min(seconds, 1.01 * least), min(seen + 1, 20)
        self._unfitted += 1

    def note_drafts(self, drafted: int, right: int) -> None:
        """Counts the drafts of one row."""
        self._all.note(drafted, right)

    def choose(self, most: int, luck: Luck) -> int:
        """Number of masks, 0 to `most`, that writes the most tokens a second if all rows do alike."""
        if self._fit is None or self._unfitted >= REFIT:
            self._fit, self._unfitted = self._line(), 0
        plain, seen = self._costs.get(self.rows, (0.0, 0))
        if self._fit is None:  # find out what forwards cost, with and without drafts
            return 0 if seen < 3 else min(LEARN, most)
        fixed, each = self._fit
        # A forward of one token a row may cost less than the line says: it multiplies vectors, not matrices.
        least = MARGIN / (plain if seen > 1 else fixed + each * self.rows)
        sizes = [*(2**power for power in range(1, most.bit_length()) if 2**power < most), most]
        rate, best = max((self._rate(masks, luck.chance, fixed, each), masks) for masks in sizes)
        if rate > least:
            return best
        return min(PROBE, most) if luck.idle >= luck.patience else 0

    def _rate(self, masks: int, chance: float, fixed: float, each: float) -> float:
        """Tokens a second of a row that drafts with this number of masks.

        A step that verifies n drafts is followed by another one if all are right, otherwise by one that only drafts.
        """
        drafts = max(masks - 1, 0)
        verified = chance * (1 - chance**drafts) / (1 - chance)
        verify = 1 / (2 - chance**drafts) if drafts else 0.0  # share of the steps that verify
        tokens = 1 + masks + verify * drafts
        return (1 + verify * verified) / (fixed + each * self.rows * tokens)

    def _line(self) -> tuple[float, float] | None:
        """Seconds of a forward as a line, fixed + each * tokens; None before two sizes have been seen twice."""
        often = sorted(self._costs.items(), key=lambda item: -item[1][1])[:10]
        points = [(tokens, seconds) for tokens, (seconds, seen) in often if seen > 1]
        if len(points) < 2:
            return None
        slopes = [(y - b) / (x - a) for (x, y), (a, b) in combinations(points, 2)]
        slope = max(median(slopes), 0.0)  # the median of all slopes: an outlier or two do not turn the line
        return max(median(seconds - slope * tokens for tokens, seconds in points), 1e-9), slope
