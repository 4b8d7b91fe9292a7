"""Draws a film as an animated picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..modeling.errors import UserError
from ..modeling.request import DenoisingStep
from . import FILM_SUFFIXES
from .film import (
    AFTER_END,
    FRAME_MS,
    INK,
    LAST_FRAME_MS,
    MARGIN,
    MASKED,
    MUTED,
    PAPER,
    PICTURE,
    TICKS,
    WIDTH,
    Film,
    _render,
    make_film,
    scale_color,
    sureness,
)


def draw_film(
    path: str | Path,
    history: Sequence[DenoisingStep],
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
        tokenizer: The model's tokenizer.
        prompt_length: Number of tokens of the prompt.
        image: The picture that the question is about.
        prompt: The question.
        answer_length: Number of tokens of the answer.

    Raises:
        UserError: `path` has another suffix, or the history cannot be drawn.
    """
    suffix = Path(path).suffix
    if suffix not in FILM_SUFFIXES:
        raise UserError(f"{path}: a film is one of {FILM_SUFFIXES}, not {suffix!r}")
    film = make_film(history, tokenizer, prompt_length, answer_length)
    if suffix == ".html":
        Path(path).write_text(_render(film, image, prompt, standalone=True), encoding="utf-8")
        return
    frames = draw_frames(film, image, prompt)
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def draw_frames(film: Film, image: Image.Image | None, prompt: str) -> list[Image.Image]:
    """Draws a frame for each step, in 256 colours."""
    font = ImageFont.load_default(size=21)
    boxes = place_boxes([token.text for token in film.tokens], font, WIDTH - 2 * MARGIN)
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
            if token.step > index or token.after_end:
                draw.rounded_rectangle(shape, 4, AFTER_END if token.step <= index else MASKED)
            else:
                draw.rounded_rectangle(shape, 4, token.color)
                draw.text((shape[0] + 3, (shape[1] + shape[3]) / 2), token.text.strip(), token.ink, font, anchor="lm")
        # One palette for all: colours that differ from frame to frame would flicker.
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    return frames


def _palette(image: Image.Image | None) -> Image.Image:
    """Returns a picture with the palette of the film: colours of confidence, greys for letters, and the picture's."""
    fixed = [scale_color(step / 95) for step in range(96)] + [PAPER, INK, MUTED, MASKED, AFTER_END]
    ramp = Image.linear_gradient("L").resize((1, 24)).tobytes()[:-1]  # the edges of letters, but no second white
    flat = [value for color in fixed for value in bytes.fromhex(color[1:])] + [grey for grey in ramp for _ in range(3)]
    if image is not None:
        room = 256 - len(flat) // 3
        flat += (image.convert("RGB").quantize(room).getpalette() or [])[: 3 * room]
    palette = Image.new("P", (1, 1))
    palette.putpalette(flat)
    return palette


def place_boxes(
    texts: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[tuple[float, float, float, float]]:
    """Places tokens as text with word wrap.

    Args:
        texts: Texts of the tokens; a leading space separates words, a line break ends the line.
        font: Font of all tokens.
        width: Width of a line in pixels.

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
        # Cells after the end have no letters but stand for tokens.
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
    """Draws what does not move (picture, question, legend), and returns it with the height where the answer begins."""
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
    bar = (WIDTH - MARGIN - 172, top - 27, WIDTH - MARGIN - 8, top - 16)
    for x in range(bar[0], bar[2]):
        draw.line((x, bar[1], x, bar[3]), scale_color((x - bar[0]) / (bar[2] - 1 - bar[0])))
    draw.text((bar[0] - 9, top - 22), "confidence", MUTED, small, anchor="rm")
    tiny = ImageFont.load_default(size=11)
    for tick in TICKS:
        draw.text((bar[0] + sureness(tick) * (bar[2] - 1 - bar[0]), bar[1] - 8), f"{tick:g}", MUTED, tiny, anchor="mm")
    return head, top


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, except for a longer word."""
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
