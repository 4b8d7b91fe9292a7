"""The film of an answer: how masks became its tokens, step by step, as an animated GIF or an HTML page.

A token is placed where it stands in the final answer and is a grey box until the step that reveals it, so nothing
jumps. The colour of a revealed token shows the confidence of the model in it at that moment.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.chat_template import special_tokens
from ..modeling.errors import UserError
from .page import HERE, render

if TYPE_CHECKING:
    from ..modeling.request import DenoisingStep

# matplotlib's viridis at 17 even places; between them it is straight enough.
VIRIDIS = (
    "#440154", "#48186a", "#472d7b", "#424086", "#3b528b", "#33638d", "#2c728e", "#26828e", "#21918c",
    "#1fa088", "#28ae80", "#3fbc73", "#5ec962", "#84d44b", "#addc30", "#d8e219", "#fde725",
)  # fmt: skip
WIDTH, MARGIN, PICTURE = 760, 28, 152  # pixels of the GIF
END, EMPTY = " <end>", "    "  # how an end of sequence, and a token after it, are shown
TICKS = (0.0, 0.5, 0.9, 0.99, 1.0)  # confidences that the legend names
FRAME_MS, LAST_FRAME_MS = 240, 3500
PAPER, INK, MUTED, MASKED, AFTER_END = "#ffffff", "#1b2430", "#667085", "#d5dae1", "#f0f2f5"


@dataclass(frozen=True)
class FilmToken:
    """One token of the answer.

    Attributes:
        text: The text that it adds to the answer, its leading space included.
        confidence: Its probability when it was revealed.
        step: Index of the step that revealed it.
        block: Index of its block.
        after_end: Whether it stands after the end of the answer.
    """

    text: str
    confidence: float
    step: int
    block: int
    after_end: bool

    @property
    def title(self) -> str:
        """The text that the page shows when the mouse is over it."""
        return f"{self.text!r}, confidence {self.confidence:.3f}, revealed in step {self.step + 1}"

    @property
    def color(self) -> str:
        """The background that shows its confidence."""
        return confidence_color(self.confidence)

    @property
    def ink(self) -> str:
        """The colour of text that is readable on its background."""
        return "#ffffff" if sureness(self.confidence) < 0.6 else "#101418"


@dataclass(frozen=True)
class Film:
    """An answer and the steps that made it.

    Attributes:
        tokens: Tokens in the order of the answer.
        blocks: The block that each step worked on.
        captions: A line of text for each step.
    """

    tokens: list[FilmToken]
    blocks: list[int]
    captions: list[str]


def sureness(confidence: float) -> float:
    """Places a confidence on a scale from 0 to 1 that keeps 0.9, 0.99 and 0.999 apart: models are seldom less sure."""
    return 1 - (1 - min(max(confidence, 0.0), 1.0)) ** 0.25


def confidence_color(confidence: float) -> str:
    """Returns the colour of a confidence as `#rrggbb`: viridis, from dark violet at 0 to yellow at 1."""
    return scale_color(sureness(confidence))


def scale_color(place: float) -> str:
    """Returns the colour at a place of the scale, from 0 to 1, as `#rrggbb`."""
    place = place * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    ends = [bytes.fromhex(color[1:]) for color in VIRIDIS[low : low + 2]]
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True))
    return "#" + bytes(mixed).hex()


def make_film(
    history: Sequence["DenoisingStep"], tokenizer: Any, prompt_length: int, answer_length: int | None = None
) -> Film:
    """Reads from a history which step revealed which token.

    Args:
        history: `generate(..., output_history=True).history` of a single prompt, [1, D] a step.
        tokenizer: The model's tokenizer.
        prompt_length: Number P of tokens of the prompt. Those in the first block are not drawn.
        answer_length: Number of tokens of the answer, with its end of sequence; what was denoised after them is dimmed.
            If left out, the answer ends with its first end-of-sequence or padding token.

    Raises:
        UserError: There is no history, or it is of several prompts.
    """
    if not history:
        raise UserError("there is no denoising history to draw; call generate() with output_history=True")
    if history[0].tokens.shape[0] != 1:
        raise UserError(f"a film shows one answer, but the history has {history[0].tokens.shape[0]}; use a batch of 1")
    ids: dict[int, int] = {}
    revealed: dict[int, tuple[int, int, float]] = {}  # column -> step, block, confidence
    for index, step in enumerate(history):
        rows = (step.columns, step.tokens, step.masked, step.confidence)
        for column, token, masked, confidence in zip(*(row[0].tolist() for row in rows), strict=True):
            if column >= prompt_length and not masked and column not in revealed:
                ids[column], revealed[column] = token, (index, step.block, confidence)
    columns = sorted(ids)
    texts = token_texts([ids[column] for column in columns], tokenizer)
    special = special_tokens(tokenizer)
    ends = [n for n, column in enumerate(columns) if ids[column] in special]  # of a turn, of a text, or padding
    length = answer_length if answer_length is not None else ends[0] + 1 if ends else len(columns)
    tokens = []
    for number, (column, text) in enumerate(zip(columns, texts, strict=True)):
        index, block, confidence = revealed[column]
        after_end = number >= length
        shown = EMPTY if after_end else END if number in ends else text
        tokens.append(FilmToken(shown, confidence, index, block, after_end))
    blocks = [step.block for step in history]
    return Film(tokens, blocks, _captions(tokens, blocks))


def _captions(tokens: list[FilmToken], blocks: list[int]) -> list[str]:
    """Writes the line of counters for each step."""
    captions = []
    for index, block in enumerate(blocks):
        done = sum(token.step <= index and not token.after_end for token in tokens)
        captions.append(
            f"block {block + 1} of {blocks[-1] + 1}  ·  step {index - blocks.index(block) + 1} of {blocks.count(block)}"
            f"  ·  {done} tokens in {index + 1} step{'s' * (index > 0)}"
        )
    return captions


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Returns what each token adds to the text; a character of several tokens belongs to the last of them."""
    prefixes = [""]
    for length in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        prefixes.append(text.rstrip("\ufffd"))
    return [after[len(before) :] for before, after in pairwise(prefixes)]


def film_html(
    history: Sequence["DenoisingStep"],
    tokenizer: Any,
    prompt_length: int,
    image: Image.Image | None = None,
    prompt: str = "",
    answer_length: int | None = None,
) -> str:
    """Returns the film as an HTML fragment for another page; its arguments are those of `draw_film`."""
    return _render(make_film(history, tokenizer, prompt_length, answer_length), image, prompt, standalone=False)


def _render(film: Film, image: Image.Image | None, prompt: str, standalone: bool) -> str:
    return render(
        HERE / "film.html.jinja",
        film=film,
        prompt=prompt,
        image=image and data_url(image),
        gradient=", ".join(VIRIDIS),
        ticks=[(f"{tick:g}", 100 * sureness(tick)) for tick in TICKS],
        frame_ms=FRAME_MS,
        standalone=standalone,
    )


def data_url(image: Image.Image, longest_edge: int = 448) -> str:
    """Writes a picture as a `data:` URL, made smaller if it is large."""
    image = image.convert("RGB")
    image.thumbnail((longest_edge, longest_edge))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def side_by_side(images: "list[Image.Image]", height: int = 448) -> "Image.Image":
    """Joins pictures into one strip for the film."""
    from PIL import Image

    if len(images) == 1:
        return images[0]
    scaled = [image.resize((max(round(image.width * height / image.height), 1), height)) for image in images]
    strip = Image.new("RGB", (sum(image.width for image in scaled) + 8 * (len(scaled) - 1), height), "white")
    x = 0
    for image in scaled:
        strip.paste(image, (x, 0))
        x += image.width + 8
    return strip
