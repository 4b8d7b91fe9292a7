"""Draws more training pictures like easy-VQA's: one coloured shape on a light background, 64x64."""

import random

from PIL import Image, ImageDraw

from diffusionvl.modeling.errors import UserError

SIZE = 64
FINE = 4  # drawn this much larger, then made smaller: smooth edges, as the official pictures have
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}


def draw_shape(shape: str, color: str, rng: random.Random) -> Image.Image:
    """Draws one shape of random size and place.

    Args:
        shape: Name of the shape: circle, rectangle or triangle (upright, equilateral).
        color: A name in `COLORS`.
        rng: Source of randomness.

    Raises:
        UserError: There is no such shape or colour.
    """
    if color not in COLORS:
        raise UserError(f"color must be one of {list(COLORS)}, got {color!r}")
    width = rng.uniform(9, 33)
    if shape == "rectangle":
        height = rng.uniform(9, 33)
    elif shape == "circle":
        height = width
    elif shape == "triangle":
        height = width * 3**0.5 / 2
    else:
        raise UserError(f"shape must be circle, rectangle or triangle, got {shape!r}")
    left, top = rng.uniform(0, SIZE - width), rng.uniform(0, SIZE - height)
    box = [FINE * edge for edge in (left, top, left + width, top + height)]
    background = tuple(rng.randint(230, 255) for _ in range(3))
    picture = Image.new("RGB", (FINE * SIZE, FINE * SIZE), background)
    draw = ImageDraw.Draw(picture)
    if shape == "rectangle":
        draw.rectangle(box, COLORS[color])
    elif shape == "circle":
        draw.ellipse(box, COLORS[color])
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], COLORS[color])
    return picture.reduce(FINE)
