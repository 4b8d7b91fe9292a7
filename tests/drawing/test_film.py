"""The film: which step revealed what, and the two kinds of file."""

import re
from itertools import pairwise

import matplotlib as mpl
import pytest
import torch
from PIL import Image, ImageFont

from diffusionvl.drawing.film import confidence_color, film_html, make_film, scale_color, sureness, token_texts
from diffusionvl.drawing.film_gif import draw_film, place_boxes
from diffusionvl.modeling.request import DenoisingStep
from studies.quickstart.base import build_tokenizer

PROMPT = 3


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tokenizer(["The shape is red."])
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return tokenizer


@pytest.fixture(scope="module")
def history(tokenizer):
    """Blocks of 4, the first of which starts with the last prompt token: `u|The shape is` and `red. <end> pad`."""
    the, shape, is_, red, dot = tokenizer("The shape is red.")["input_ids"]
    mask, eos, pad, prompt = tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, dot
    rows = [  # block, first column, tokens after the step, confidence of the step
        (0, 2, [prompt, the, mask, mask], [1.0, 0.9, 0.2, 0.3]),
        (0, 2, [prompt, the, mask, is_], [1.0, 1.0, 0.4, 0.6]),
        (0, 2, [prompt, the, shape, is_], [1.0, 1.0, 0.5, 1.0]),
        (1, 6, [red, dot, eos, pad], [0.7, 0.8, 0.95, 0.99]),
    ]
    return [
        DenoisingStep(
            block,
            torch.tensor([tokens]),
            torch.tensor([tokens]) == mask,
            torch.tensor([confidence]),
            torch.arange(column, column + 4)[None],
        )
        for block, column, tokens, confidence in rows
    ]


def test_a_token_has_the_step_and_the_confidence_of_its_revelation(history, tokenizer):
    film = make_film(history, tokenizer, PROMPT)
    seen = [(token.text, token.step, token.block, round(token.confidence, 2)) for token in film.tokens]
    assert seen == [
        ("The", 0, 0, 0.9),
        (" shape", 2, 0, 0.5),
        (" is", 1, 0, 0.6),
        (" red", 3, 1, 0.7),
        (".", 3, 1, 0.8),
        (" <end>", 3, 1, 0.95),
        ("    ", 3, 1, 0.99),
    ]
    assert [token.after_end for token in film.tokens] == [False] * 6 + [True]
    assert film.blocks == [0, 0, 0, 1]
    assert film.captions[2] == "block 1 of 2  ·  step 3 of 3  ·  3 tokens in 3 steps"
    assert film.captions[3] == "block 2 of 2  ·  step 1 of 1  ·  6 tokens in 4 steps"


def test_answer_length_cuts_what_was_denoised_after_it(history, tokenizer):
    film = make_film(history, tokenizer, PROMPT, answer_length=4)
    assert [token.after_end for token in film.tokens] == [False] * 4 + [True] * 3


def test_gif_has_a_frame_a_step_and_holds_the_last(history, tokenizer, tmp_path):
    path = tmp_path / "film.gif"
    draw_film(path, history, tokenizer, PROMPT, Image.new("RGB", (64, 48), "teal"), "what is the shape?")
    with Image.open(path) as film:
        assert (film.format, film.n_frames) == ("GIF", len(history))
        durations, frames = [], []
        for index in range(film.n_frames):
            film.seek(index)
            durations.append(film.info["duration"])
            frames.append(film.convert("RGB"))
    assert durations[-1] > 10 * durations[0]
    assert all(frame.getpixel((2, 2)) == (255, 255, 255) for frame in frames)
    # The same places in another state: a grey box becomes a coloured one.
    assert frames[0].tobytes() != frames[-1].tobytes()


def test_gif_without_picture_and_question(history, tokenizer, tmp_path):
    draw_film(tmp_path / "film.gif", history, tokenizer, PROMPT)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == len(history)


def test_html_is_one_page_that_needs_no_other_file(history, tokenizer, tmp_path):
    path = tmp_path / "film.html"
    draw_film(path, history, tokenizer, PROMPT, Image.new("RGB", (8, 8)), "is 1 < 2 & </script>?")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("data-step=") == 7
    assert "&lt;end&gt;" in page
    assert "is 1 &lt; 2 &amp; &lt;/script&gt;?" in page
    assert 'max="3"' in page
    assert not re.search(r"https?://", page)
    assert re.findall(r'src="([^,"]*)', page) == ["data:image/png;base64"]


def test_fragment_stands_in_another_page(history, tokenizer):
    fragment = film_html(history, tokenizer, PROMPT)
    assert "<html" not in fragment
    assert '<div class="film"' in fragment
    assert "id=" not in fragment  # several films may stand in one page


def test_errors_name_value_and_remedy(history, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="output_history=True"):
        make_film([], tokenizer, PROMPT)
    two = [DenoisingStep(step.block, *(torch.cat([t, t]) for t in _tensors(step))) for step in history]
    with pytest.raises(ValueError, match="has 2; use a batch of 1"):
        make_film(two, tokenizer, PROMPT)
    with pytest.raises(ValueError, match=r"\.mp4"):
        draw_film(tmp_path / "film.mp4", history, tokenizer, PROMPT)


def _tensors(step):
    return step.tokens, step.masked, step.confidence, step.columns


@pytest.mark.parametrize("text", ["The shape is red.", "naïve 字 🙂 end", " two\n\nlines\n"])
def test_token_texts_join_to_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert "".join(token_texts(ids, tokenizer)) == text


def test_words_wrap_whole_and_do_not_overlap():
    font = ImageFont.load_default(size=21)
    texts = ["A", " long", " para", "graph", ",", " that", "\n", "goes", " on", " un" + "believ" * 12, "able"] * 3
    boxes = place_boxes(texts, font, 300)
    rows: dict[float, list[tuple[float, float]]] = {}
    for left, upper, right, lower in boxes:
        assert lower > upper
        rows.setdefault(upper, []).append((left, right))
    for row in rows.values():
        assert all(right <= left for (_, right), (left, _) in pairwise(row))
    assert boxes[2][1] == boxes[3][1] == boxes[4][1]  # para, graph and the comma are one word
    assert boxes[7][:2] == (0.0, boxes[6][1])  # a line break ends the line


def test_colors_are_viridis():
    viridis = mpl.colormaps["viridis"]
    for step in range(101):
        ours = bytes.fromhex(scale_color(step / 100)[1:])
        theirs = [round(255 * value) for value in viridis(step / 100)[:3]]
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 6


def test_high_confidences_look_different():
    places = [sureness(confidence) for confidence in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 1)
    assert len({confidence_color(confidence) for confidence in (0.9, 0.97, 0.99, 0.999, 0.9999)}) == 5
