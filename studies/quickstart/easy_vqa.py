"""`python -m studies.quickstart.easy_vqa --out DIR`: writes easy-VQA (PyPI, MIT) as training records.

A record is a conversation about one 64x64 picture of one shape.

The official package holds short questions only. Long questions are added here; their answers are composed
from the official annotations, so each has exactly one right answer and exact match is well defined.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.modeling.errors import UserError
from studies.quickstart.shapes import COLORS as RGB
from studies.quickstart.shapes import draw_shape

SHAPES = ("circle", "rectangle", "triangle")
COLORS = tuple(RGB)
LONG_QUESTIONS = (
    "describe the image in detail.",
    "which shapes are missing from the image?",
    "which colors are present and which are absent?",
)
RawRecord = dict[str, Any]  # a line of a records file


@cache
def _load(split: str) -> dict[int, tuple[str, list[tuple[str, str]]]]:
    """Maps image numbers of the split "train" or "test" to an absolute path and official (question, answer) pairs."""
    try:
        import easy_vqa
    except ImportError as error:
        raise UserError("easy-VQA is not installed; get it with: pip install easy-vqa") from error
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    pairs = defaultdict(list)
    for question, answer, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        pairs[image].append((question, answer))
    return {image: (str(Path(paths[image]).resolve()), pairs[image]) for image in sorted(pairs)}


def pictures_of(split: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lists path and official (question, answer) pairs of every picture of the split "train" or "test"."""
    return list(_load(split).values())


def annotation(pairs: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Derives an image's shape and colour from its official questions and answers.

    Args:
        pairs: (question, answer) of one image.

    Returns:
        (shape, colour); None where the questions do not settle it.

    Raises:
        UserError: the questions contradict each other.
    """
    settled = []
    for names in (set(SHAPES), set(COLORS)):
        present: set[str] = set()
        absent: set[str] = set()
        for question, answer in pairs:
            words = set(question.rstrip("?").split())
            if answer in ("yes", "no"):
                # "is there not a red shape?" reverses the meaning of the answer.
                holds = (answer == "yes") != bool(words & {"not", "no"})
                (present if holds else absent).update(words & names)
            else:
                present |= (words | {answer}) & names
        if not present and len(names - absent) == 1:
            present = names - absent
        if len(present) > 1:
            raise UserError(f"contradictory questions about one image: {sorted(present)} in {pairs}")
        settled.append(present.pop() if present else None)
    return settled[0], settled[1]


def long_answer(question: str, shape: str, color: str) -> str:
    """Composes the one right answer to one of LONG_QUESTIONS.

    Returns:
        Two or three English sentences, 30 to 48 tokens.

    Raises:
        UserError: `question` is not one of LONG_QUESTIONS.
    """
    if question not in LONG_QUESTIONS:
        raise UserError(f"{question!r} is not one of the long questions {LONG_QUESTIONS}")
    first, second = (name for name in SHAPES if name != shape)
    *others, last = (name for name in COLORS if name != color)
    if question == LONG_QUESTIONS[0]:
        return (
            f"The image shows a single {color} {shape} on a plain, light background. There is no {first} and"
            f" no {second} in it. The {shape} is {color} all over, and nothing else is drawn in the image."
        )
    if question == LONG_QUESTIONS[1]:
        return (
            f"Two of the three shapes are missing: there is no {first} and there is no {second}."
            f" Only one {shape} is present, and its color is {color}."
        )
    return (
        f"The only color of a shape here is {color}. None of the other colors is present: there is no"
        f" {', no '.join(others)} and no {last}. The {color} shape is a {shape}."
    )


def corpus() -> list[str]:
    """Lists every text that a tokenizer for this data must know: the official TRAIN texts and all long ones."""
    official = {text for _, pairs in _load("train").values() for pair in pairs for text in pair}
    longs = {long_answer(q, shape, color) for q in LONG_QUESTIONS for shape in SHAPES for color in COLORS}
    return sorted(official | longs | set(LONG_QUESTIONS))


def _record(name: str, image: str, pairs: list[tuple[str, str]]) -> RawRecord:
    """Writes one conversation about one image; the picture stands in the first user turn alone."""
    messages = []
    for turn, (question, answer) in enumerate(pairs):
        picture = [{"type": "image"}] if turn == 0 else []
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"id": name, "images": [image], "messages": messages}


def _conversation(pairs: list[tuple[str, str]], longs: tuple[int, int], turns: int, rng: random.Random) -> list:
    """Draws up to `turns` short (question, answer) pairs and a number of long ones, in random order."""
    shape, color = annotation(pairs)
    chosen = rng.sample(pairs, min(turns, len(pairs)))
    if shape and color:
        questions = rng.sample(LONG_QUESTIONS, rng.randint(*longs))
        chosen += [(question, long_answer(question, shape, color)) for question in questions]
    rng.shuffle(chosen)
    return chosen


def _shuffled(repeats: int, rng: random.Random) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Yields record name, image path and official pairs of every TRAIN image, `repeats` times."""
    for repeat in range(repeats):
        images = list(_load("train").items())
        rng.shuffle(images)
        for image, (path, pairs) in images:
            yield f"easyvqa-train-{image}-{repeat}", path, pairs


def _redraw(number: int, path: str, pairs: list[tuple[str, str]], drawn: Path, rng: random.Random) -> str:
    """Draws a new picture of the same shape and colour; keeps the official one where the questions leave these open."""
    shape, color = annotation(pairs)
    if not shape or not color:
        return path
    redrawn = (drawn / f"{number}.png").resolve()
    draw_shape(shape, color, rng).save(redrawn, compress_level=1)
    return str(redrawn)


def train_records(
    repeats: int = 1,
    seed: int = 0,
    turns: int = 2,
    longs: tuple[int, int] = (0, 1),
    drawn: Path | None = None,
) -> list[RawRecord]:
    """Writes multi-turn conversations about the official TRAIN images.

    Args:
        repeats: conversations per image, each with another draw and order of its questions.
        seed: of the draws; the same seed gives the same records.
        turns: short questions per conversation at most (an image has 2 to 21).
        longs: least and most long questions per conversation, 0 to 3; the number is drawn. Images whose shape
            or colour the official questions leave open get none.
        drawn: folder for new pictures, one a conversation; each replaces an official picture of its shape and
            colour, whose questions it takes. The first 4,000 conversations keep the official ones.

    Returns:
        `repeats` x 4,000 records, shuffled within each repeat; fewer with `turns` 0.

    Raises:
        UserError: the package easy-vqa is missing.
    """
    rng = random.Random(seed)
    records = []
    for number, (name, path, pairs) in enumerate(_shuffled(repeats, rng)):
        if drawn is not None and number >= len(_load("train")):
            path = _redraw(number, path, pairs, drawn, rng)
        conversation = _conversation(pairs, longs, turns, rng)
        if conversation:  # with `turns` 0, there is none about a picture whose shape or colour is left open
            records.append(_record(name, path, conversation))
    return records


def attribute_records(repeats: int = 1, seed: int = 0, colors: bool = True) -> list[RawRecord]:
    """Writes single-turn records about the TRAIN images that ask for the shape or the colour alone.

    In a mixture the colour is learned first and the shape lags; asked alone (`colors=False`), the shape is
    learned in a few hundred steps. Other arguments and errors as in `train_records`.
    """
    rng = random.Random(seed)
    starts = [("what shape ", 0)] + [("what color is the shape", 1)] * colors
    kinds = [([text for text in corpus() if text.startswith(start)], slot) for start, slot in starts]
    return [
        _record(f"{name}-{slot}", path, [(rng.choice(questions), value)])
        for name, path, pairs in _shuffled(repeats, rng)
        for questions, slot in rng.sample(kinds, len(kinds))
        if (value := annotation(pairs)[slot])
    ]


def test_records(kind: str = "short", limit: int | None = None) -> list[RawRecord]:
    """Writes single-turn records, one question each, about the official TEST images.

    Args:
        kind: "short" for the 9,673 official questions, "long" for the long ones.
        limit: Number of records to keep, spread evenly over the images; all if left out.

    Raises:
        UserError: The package easy-vqa is missing, or `kind` is another.
    """
    if kind not in ("short", "long"):
        raise UserError(f"kind must be 'short' or 'long', got {kind!r}")
    records = []
    for image, (path, pairs) in _load("test").items():
        shape, color = annotation(pairs)
        if kind == "long":
            pairs = [(q, long_answer(q, shape, color)) for q in LONG_QUESTIONS] if shape and color else []
        for number, pair in enumerate(pairs):
            records.append(_record(f"easyvqa-test-{kind}-{image}-{number}", path, [pair]))
    count = len(records) if limit is None else min(limit, len(records))
    return [records[index * len(records) // count] for index in range(count)]


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="python -m studies.quickstart.easy_vqa", description="Write easy-VQA's training records.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--attributes", choices=("shape", "both"), help="questions for shape, or shape and colour, only"
    )
    parser.add_argument("--repeats", type=int, default=1, help="conversations about each image (1)")
    parser.add_argument("--turns", type=int, default=4, help="short questions of a conversation, at most (4)")
    parser.add_argument("--longs", type=int, nargs=2, default=(0, 1), help="least and most long questions (0 1)")
    parser.add_argument("--draw", action="store_true", help="draw a new picture for all but the first conversation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Writes training records.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_write, argv)


def _write(args: argparse.Namespace) -> None:
    """Writes `conversations.jsonl`, or with `--attributes` the records of `attribute_records`."""
    if args.repeats < 1 or args.turns < 0 or not 0 <= args.longs[0] <= args.longs[1] <= len(LONG_QUESTIONS):
        raise UserError("--repeats must be at least 1, --turns at least 0, and --longs two of 0 to 3, the least first")
    if not args.turns and not args.longs[0]:
        raise UserError("--turns 0 needs --longs 1 or more, or conversations would be empty")
    path = args.out / ("attributes.jsonl" if args.attributes else "conversations.jsonl")
    if args.attributes:
        records = attribute_records(args.repeats, args.seed, colors=args.attributes == "both")
    else:
        drawn = args.out / "images" if args.draw else None
        if drawn is not None:
            drawn.mkdir(parents=True, exist_ok=True)
        records = train_records(args.repeats, args.seed, args.turns, tuple(args.longs), drawn)
    write_jsonl(records, path)
    print(f"{path}: {len(records):,} records")


if __name__ == "__main__":
    sys.exit(main())
