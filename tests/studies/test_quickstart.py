"""Evaluation counts what it should, and the report is one file with the numbers it was given."""

import re

import pytest
import torch
from PIL import Image

from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.drawing.film import film_html
from diffusionvl.evaluation.costs import Cost
from diffusionvl.translation.translate import translate
from studies.quickstart import contest as arena
from studies.quickstart.base import build_base
from studies.quickstart.contest import Contender, Result, contest, contest_speed, way_of
from studies.quickstart.findings import DecodingRow, Example, Findings, format_table, write_findings

QUESTIONS = ("what is the shape?", "what color is the shape?", "is there a red shape in the image?", "what?", "is it?")
MAX_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The AR base, its translation and their processor."""
    folder = str(tmp_path_factory.mktemp("base"))
    base, processor = build_base()
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    translated, translated_processor = translate(folder)
    out = str(tmp_path_factory.mktemp("translated"))
    save_checkpoint(translated, translated_processor, out)
    return base.eval(), translated, load_processor(out)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number, question in enumerate(QUESTIONS):
        path = folder / f"{number % 2}.png"
        Image.new("RGB", (64, 64), ("red", "teal")[number % 2]).save(path)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        right = [{"type": "text", "text": "yes"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": right}]
        made.append({"id": str(number), "images": [str(path)], "messages": messages})
    return made


def alone(model, processor, record, **settings):
    """One record, by nothing but the processor and `generate`: its new ids and, for block diffusion, its forwards."""
    text = processor.apply_chat_template(record["messages"][:1], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.open(record["images"][0])], return_tensors="pt")
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "return_dict_in_generate": True, **settings}
    output = model.generate(**inputs, **settings)
    new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return new, int(output.forwards[0]) if "forwards" in output else len(new)


@pytest.mark.parametrize("kind", ["AR", "static", "dynamic"])
def test_counts_are_those_of_each_record_alone(models, records, kind, monkeypatch):
    base, translated, processor = models
    model = base if kind == "AR" else translated
    settings = {"do_sample": False} if kind == "AR" else {"remasking": f"low_confidence_{kind}"}
    if kind == "dynamic":
        settings["confidence_threshold"] = 0.01
    # A random model hardly ever ends, so a token that it does write is declared the end.
    free, _ = alone(model, processor, records[0], **settings)
    eos = [processor.tokenizer.eos_token_id, free[5]]
    monkeypatch.setattr(model.generation_config, "eos_token_id", eos)
    expected = [alone(model, processor, record, **settings) for record in records]
    assert len({len(new) for new, _ in expected}) > 1  # rows of a batch end at different lengths
    texts = [processor.decode(new, skip_special_tokens=True).strip() for new, _ in expected]
    right = [0, 3]
    seen = [
        {**record, "messages": [record["messages"][0], _turn(texts[index] if index in right else "something else")]}
        for index, record in enumerate(records)
    ]
    contender = Contender(way_of(model, settings), model, {"max_new_tokens": MAX_NEW_TOKENS, **settings})
    (result,) = contest([contender], processor, seen, batch_size=3)
    assert result.name == kind
    assert [index for index, correct in enumerate(result.correct) if correct] == right
    assert result.accuracy == 2 / 5
    cost = result.cost
    assert (cost.answers, cost.tokens) == (5, sum(len(new) for new, _ in expected))
    assert cost.forwards == sum(forwards for _, forwards in expected)
    assert cost.forwards_per_token == pytest.approx(cost.forwards / cost.tokens)
    assert 0 < cost.first_seconds / 5 < cost.seconds
    assert cost.tokens_per_second == pytest.approx(cost.tokens / cost.seconds)
    if kind == "AR":
        assert cost.forwards_per_token == 1


def _turn(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_contenders_share_the_batches(models, records, monkeypatch):
    base, translated, processor = models
    encoded = []
    prompts = arena.prompts
    monkeypatch.setattr(arena, "prompts", lambda *args: encoded.append(1) or prompts(*args))
    settings = {"max_new_tokens": 8}
    together = contest(
        [Contender("AR", base, settings), Contender("static", translated, settings)], processor, records, batch_size=2
    )
    assert len(encoded) == 3
    assert [one.name for one in together] == ["AR", "static"]
    for one, model in zip(together, (base, translated), strict=True):
        (alone,) = contest([Contender("", model, settings)], processor, records, 5)
        assert one.answers == alone.answers


def test_speed_is_tokens_a_second_after_the_warm_up(models, records, monkeypatch):
    base, _, processor = models
    seconds = iter([9.0, 9.0, 2.0, 4.0, 1.0])
    lengths = torch.tensor([8])
    fake = lambda *_, **__: arena.Generated(lengths, lengths, lengths, next(seconds), 0)  # noqa: E731
    monkeypatch.setattr(arena, "answer_batch", fake)
    assert contest_speed([Contender("", base)], processor, records) == [4.0]  # the median of 4, 2 and 8
    with pytest.raises(ValueError, match="2 records leave nothing"):
        contest_speed([Contender("", base)], processor, records[:2])


def test_evaluation_of_nothing_is_an_error(models):
    with pytest.raises(ValueError, match="no records"):
        contest([Contender("", models[0])], models[2], [], 4)


def result(name, right, of, tokens, forwards, seconds):
    return Result(name, [""] * of, [True] * right + [False] * (of - right), Cost(of, tokens, forwards, seconds))


@pytest.fixture
def rows():
    ar = DecodingRow(result("AR", 81, 100, 200, 200, 1.0), result("AR", 30, 40, 1600, 1600, 2.0), 230.0)
    dynamic = DecodingRow(result("dynamic", 79, 100, 200, 150, 1.5), result("dynamic", 31, 40, 1600, 500, 4.0), 690.0)
    dynamic.long.answers[:3] = ["another"] * 3
    return [ar, dynamic]


def test_table_has_the_numbers_in_columns(rows):
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert re.split(r"  +", lines[2]) == ["AR", "81.00%", "75.00%", "100.00%", "1.000", "230 (1.00x)", "800 (1.00x)"]
    assert re.split(r"  +", lines[3]) == [
        "dynamic",
        "79.00%",
        "77.50%",
        "92.50%",
        "0.312",
        "690 (3.00x)",
        "400 (0.50x)",
    ]


@pytest.fixture
def found(models, records, rows):
    _, translated, processor = models
    inputs = arena.prompts(processor, records[:1])
    settings = {"max_new_tokens": 8, "output_history": True, "return_dict_in_generate": True}
    history = translated.generate(**inputs, **settings).history
    picture = Image.new("RGB", (64, 64), "teal")
    return Findings(
        base="tiny-VL",
        block_size=8,
        steps=123,
        seconds=45.6,
        machine={"date": "2026-11-28", "hardware": "a CPU", "threads": "2 threads", "versions": "torch 9"},
        rows=rows,
        log=[{"step": step, "loss": 9 / step, "masked_accuracy": step / 9} for step in range(1, 9)]
        + [{"step": 8, "train_loss": 1.0}],
        sweep=[(threshold, rows[1].long) for threshold in (0.5, 0.9)],
        examples=[Example(picture, "is 1 < 2?", "yes, it is", "yes, it is", "<b>no</b>")],
        film=film_html(history, processor.tokenizer, inputs["input_ids"].shape[1], picture, "what is the shape?"),
    )


def test_report_is_one_file_with_the_numbers(found, tmp_path):
    path = tmp_path / "report.html"
    write_findings(path, found)
    assert list(tmp_path.iterdir()) == [path]
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://", page)
    assert {found.partition(",")[0] for found in re.findall(r'src="([^"]*)"', page)} == {"data:image/png;base64"}
    assert not re.search(r"<link|@import|url\((?!#)", page)
    for cell in (
        "81.00%",
        "75.00%",
        "77.50%",
        "92.50%",
        "1.000",
        "0.312",
        "690 (3.00x)",
        "tiny-VL",
        "123 steps",
        "46 seconds",
        "2026-11-28",
        "2 threads",
    ):
        assert cell in page
    assert page.count("<svg") == 2
    assert "currentColor" in page
    assert "#010203" not in page
    assert page.count('<div class="film"') == 1
    assert page.count("✓ right") == page.count("✗ wrong") == 1
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "is 1 &lt; 2?" in page


def test_report_without_material_is_an_error(found, tmp_path):
    from dataclasses import replace

    for name, said in (("rows", "rows"), ("log", "log lines"), ("sweep", "sweep")):
        with pytest.raises(ValueError, match=said):
            write_findings(tmp_path / "report.html", replace(found, **{name: []}))
