"""The film of an answer: how its tokens came out of the mask, step by step, as an animated GIF or an HTML page.

A token is laid out where it stands in the final answer and is a grey box until the step that reveals it, so nothing
jumps. Behind a revealed token is the confidence of the model in it at that moment.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .data.chat_template import special_tokens
from .page import render

if TYPE_CHECKING:
    from .modeling.generation_output_diffusionvl import DenoisingStep

SUFFIXES = (".gif", ".html")
# matplotlib's viridis at 17 even places; between them it is straight enough.
VIRIDIS = (
    "#440154", "#48186a", "#472d7b", "#424086", "#3b528b", "#33638d", "#2c728e", "#26828e", "#21918c",
    "#1fa088", "#28ae80", "#3fbc73", "#5ec962", "#84d44b", "#addc30", "#d8e219", "#fde725",
)  # fmt: skip
WIDTH, MARGIN, PICTURE = 760, 28, 152  # pixels of the GIF
END, EMPTY = " <end>", "    "  # how an end of sequence, and a token behind it, are shown
FRAME_MS, LAST_FRAME_MS = 240, 3500
PAPER, INK, MUTED, MASKED, BEHIND_END = "#ffffff", "#1b2430", "#667085", "#d5dae1", "#f0f2f5"


@dataclass(frozen=True)
class FilmToken:
    """One token of the answer.

    Attributes:
        text: What it adds to the answer, its leading space included.
        confidence: Its probability when it was revealed.
        step: Index of the step that revealed it.
        block: Index of its block.
        behind_end: Whether it stands behind the end of the answer.
    """

    text: str
    confidence: float
    step: int
    block: int
    behind_end: bool

    @property
    def title(self) -> str:
        """What the page shows when the mouse is over it."""
        return f"{self.text!r}, confidence {self.confidence:.3f}, revealed in step {self.step + 1}"

    @property
    def color(self) -> str:
        """Background of its confidence."""
        return confidence_color(self.confidence)

    @property
    def ink(self) -> str:
        """The colour of text that is readable on its background."""
        return "#ffffff" if self.confidence < 0.6 else "#101418"


@dataclass(frozen=True)
class Film:
    """An answer and the steps that made it.

    Attributes:
        tokens: In the order of the answer.
        blocks: Block that each step worked on.
        captions: A line for each step.
    """

    tokens: list[FilmToken]
    blocks: list[int]
    captions: list[str]


def confidence_color(confidence: float) -> str:
    """Viridis, from dark violet at 0 to yellow at 1, as `#rrggbb`."""
    place = min(max(confidence, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    ends = [bytes.fromhex(color[1:]) for color in VIRIDIS[low : low + 2]]
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True))
    return "#" + bytes(mixed).hex()


def make_film(
    history: Sequence["DenoisingStep"], tokenizer: Any, prompt_length: int, answer_length: int | None = None
) -> Film:
    """Reads off a history which step revealed which token.

    Args:
        history: `generate(..., output_history=True).history` of a single prompt, [1, D] a step.
        tokenizer: The model's.
        prompt_length: P, tokens of the prompt. Those that stand in the first block are not drawn.
        answer_length: Tokens of the answer, with its end of sequence; what was denoised behind them is dimmed. If left
            out, the answer ends with its first end-of-sequence or padding token.

    Raises:
        ValueError: There is no history, or it is that of several prompts.
    """
    if not history:
        raise ValueError("there is no denoising history to draw; call generate() with output_history=True")
    if history[0].tokens.shape[0] != 1:
        raise ValueError(f"a film shows one answer, but the history has {history[0].tokens.shape[0]}; use a batch of 1")
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
        behind_end = number >= length
        shown = EMPTY if behind_end else END if number in ends else text
        tokens.append(FilmToken(shown, confidence, index, block, behind_end))
    blocks = [step.block for step in history]
    return Film(tokens, blocks, _captions(tokens, blocks))


def _captions(tokens: list[FilmToken], blocks: list[int]) -> list[str]:
    """The line of counters for each step."""
    captions = []
    for index, block in enumerate(blocks):
        done = sum(token.step <= index and not token.behind_end for token in tokens)
        captions.append(
            f"block {block + 1} of {blocks[-1] + 1}  ·  step {index - blocks.index(block) + 1} of {blocks.count(block)}"
            f"  ·  {done} tokens in {index + 1} step{'s' * (index > 0)}"
        )
    return captions


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; a character of several tokens belongs to the last of them."""
    prefixes = [""]
    for length in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        prefixes.append(text.rstrip("\ufffd"))
    return [after[len(before) :] for before, after in pairwise(prefixes)]


def draw_film(
    path: str | Path,
    history: Sequence["DenoisingStep"],
    tokenizer: Any,
    prompt_length: int,
    image: Image.Image | None = None,
    prompt: str = "",
    answer_length: int | None = None,
) -> None:
    """Writes the film of one answer.

    Args:
        path: `.gif`: animated, a frame a step, the last one held. `.html`: one page that needs no other file. The GIF's
            font has Latin letters only; other scripts need the page.
        history: See `make_film`, as `tokenizer`, `prompt_length` and `answer_length`.
        tokenizer: The model's.
        prompt_length: P.
        image: The picture that the question is about.
        prompt: The question.
        answer_length: Tokens of the answer.

    Raises:
        ValueError: `path` has another suffix, or the history can not be drawn.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a film is one of {SUFFIXES}, not {suffix!r}")
    film = make_film(history, tokenizer, prompt_length, answer_length)
    if suffix == ".html":
        Path(path).write_text(_render(film, image, prompt, standalone=True), encoding="utf-8")
        return
    frames = draw_frames(film, image, prompt)
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def film_html(
    history: Sequence["DenoisingStep"],
    tokenizer: Any,
    prompt_length: int,
    image: Image.Image | None = None,
    prompt: str = "",
    answer_length: int | None = None,
) -> str:
    """The film as a fragment of HTML, to stand in another page; its arguments are those of `draw_film`."""
    return _render(make_film(history, tokenizer, prompt_length, answer_length), image, prompt, standalone=False)


def _render(film: Film, image: Image.Image | None, prompt: str, standalone: bool) -> str:
    return render(
        "film.html.jinja",
        film=film,
        prompt=prompt,
        image=image and data_url(image),
        gradient=", ".join(VIRIDIS),
        frame_ms=FRAME_MS,
        standalone=standalone,
    )


def data_url(image: Image.Image, longest_edge: int = 448) -> str:
    """A picture as the address of itself, made smaller if it is large."""
    image = image.convert("RGB")
    image.thumbnail((longest_edge, longest_edge))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_frames(film: Film, image: Image.Image | None, prompt: str) -> list[Image.Image]:
    """Draws a frame for each step, in 256 colours."""
    font = ImageFont.load_default(size=21)
    boxes = lay_out([token.text for token in film.tokens], font, WIDTH - 2 * MARGIN)
    head, top = _draw_head(film, image, prompt)
    bottom = max((box[3] for box in boxes), default=0)
    page = Image.new("RGB", (WIDTH, top + int(bottom) + MARGIN), PAPER)
    page.paste(head)
    palette = _palette(image)
    frames = []
    for index, (block, caption) in enumerate(zip(film.blocks, film.captions, strict=True)):
        frame = page.copy()
        draw = ImageDraw.Draw(frame)
        draw.text((MARGIN, top - 22), caption, MUTED, ImageFont.load_default(size=15), anchor="lm")
        for token, (left, upper, right, lower) in zip(film.tokens, boxes, strict=True):
            if token.block > block or right <= left:
                continue
            shape = (left + MARGIN, upper + top, right + MARGIN, lower + top)
            if token.step > index or token.behind_end:
                draw.rounded_rectangle(shape, 4, BEHIND_END if token.step <= index else MASKED)
            else:
                draw.rounded_rectangle(shape, 4, token.color)
                draw.text((shape[0] + 3, (shape[1] + shape[3]) / 2), token.text.strip(), token.ink, font, anchor="lm")
        # One palette for all: colours that differ from frame to frame would flicker.
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    return frames


def _palette(image: Image.Image | None) -> Image.Image:
    """A picture whose palette is that of the film: the colours of confidence, greys for letters, and the picture's."""
    fixed = [confidence_color(step / 95) for step in range(96)] + [PAPER, INK, MUTED, MASKED, BEHIND_END]
    ramp = Image.linear_gradient("L").resize((1, 24)).tobytes()[:-1]  # the edges of letters, but no second white
    flat = [value for color in fixed for value in bytes.fromhex(color[1:])] + [grey for grey in ramp for _ in range(3)]
    if image is not None:
        room = 256 - len(flat) // 3
        flat += (image.convert("RGB").quantize(room).getpalette() or [])[: 3 * room]
    palette = Image.new("P", (1, 1))
    palette.putpalette(flat)
    return palette


def lay_out(
    texts: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[tuple[float, float, float, float]]:
    """Places tokens as text with word wrap.

    Args:
        texts: Of the tokens; a leading space parts words, a line break ends the line.
        font: Of all.
        width: Pixels of a line.

    Returns:
        Left, upper, right and lower edge of each token; a token without ink has no width.
    """
    line, padding, gap, space = 38, 3, 2, 5
    boxes = []
    x, y = 0.0, 0.0
    for index, text in enumerate(texts):
        if text.strip(" ").startswith("\n"):
            x, y = 0.0, y + line
        ink = text.strip()
        # Cells behind the end have no letters but stand for something.
        size = font.getlength(ink) + 2 * padding if ink else (22.0 if text and "\n" not in text else 0.0)
        word = size
        for follower in texts[index + 1 :]:  # a word is wrapped whole, unless it is longer than a line
            if not follower or follower[0].isspace():
                break
            word += font.getlength(follower.strip()) + 2 * padding + gap
        starts_word = text[:1].isspace()
        x += space if starts_word and x else 0.0
        if x and x + (word if starts_word and word <= width else size) > width:
            x, y = 0.0, y + line
        boxes.append((x, y, x + size, y + line - 8))
        x += size + gap if size else 0.0
        if "\n" in text.strip(" ")[1:]:
            x, y = 0.0, y + line
    return boxes


def _draw_head(film: Film, image: Image.Image | None, prompt: str) -> tuple[Image.Image, int]:
    """Draws what does not move: picture, question, legend. Returns it and the place where the answer begins."""
    font = ImageFont.load_default(size=22)
    left = MARGIN + (PICTURE + 24 if image else 0)
    lines = _wrap(prompt, font, WIDTH - MARGIN - left)
    height = max(len(lines) * 30, PICTURE if image else 0)
    top = MARGIN + height + 56
    head = Image.new("RGB", (WIDTH, top), PAPER)
    draw = ImageDraw.Draw(head)
    if image:
        picture = image.convert("RGB")
        scale = PICTURE / max(picture.size)
        picture = picture.resize([max(round(edge * scale), 1) for edge in picture.size], Image.Resampling.LANCZOS)
        head.paste(picture, (MARGIN, MARGIN))
        edge = (MARGIN - 1, MARGIN - 1, MARGIN + picture.width, MARGIN + picture.height)
        draw.rectangle(edge, outline=MASKED)
    for number, line in enumerate(lines):
        draw.text((left, MARGIN + 15 + 30 * number), line, INK, font, anchor="lm")
    small = ImageFont.load_default(size=15)
    bar = (WIDTH - MARGIN - 132, top - 27, WIDTH - MARGIN - 20, top - 16)
    for x in range(bar[0], bar[2]):
        draw.line((x, bar[1], x, bar[3]), confidence_color((x - bar[0]) / (bar[2] - 1 - bar[0])))
    draw.text((bar[0] - 7, top - 22), "confidence  0", MUTED, small, anchor="rm")
    draw.text((bar[2] + 7, top - 22), "1", MUTED, small, anchor="lm")
    return head, top


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Lines of `text` that are at most `width` pixels wide, a longer word aside."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines
