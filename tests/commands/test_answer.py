"""`diffusionvl answer`: what it writes and scores, how it goes on, and what it refuses."""

import json

import pytest
from helpers import QUESTION, run

from diffusionvl.evaluation import answerer


@pytest.fixture
def records(tmp_path, pictures):
    """Four records: a picture, text alone, two turns, and a picture that is missing."""

    def turns(*texts, image=None):
        messages = []
        for number, text in enumerate(texts):
            content = [{"type": "image"}] if image and number == 0 else []
            role = "assistant" if number % 2 else "user"
            messages.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
        return {"images": [image] if image else [], "messages": messages}

    lines = [
        turns(QUESTION, "red", image=pictures[0]),
        turns("is there a circle?", "yes"),
        turns("is there a circle?", "yes", QUESTION, "it is red"),
        turns(QUESTION, "red", image=str(tmp_path / "none.png")),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def answer(capsys, records, tmp_path):
    """Runs the command on the records: exit code, stdout, stderr and the lines of the file."""

    def call(model, *flags, out=tmp_path / "answers.jsonl"):
        argv = ("answer", str(records), "--model", model, "--out", str(out), "--max-new-tokens", "8", "--device", "cpu")
        code, printed, err = run(capsys, *argv, *flags)
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, printed, err, lines

    return call


def infer(capsys, model, *flags):
    argv = ("infer", "--model", model, "--max-new-tokens", "8", "--device", "cpu", "--json", *flags)
    return json.loads(run(capsys, *argv)[1])


def test_answers_are_those_of_infer_and_are_scored(answer, causal_dir, pictures, capsys, tmp_path):
    code, printed, err, lines = answer(causal_dir, "--batch-size", "2")
    assert code == 1  # for the missing picture
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    alone = infer(capsys, causal_dir, "--prompt", QUESTION, "--image", pictures[0])
    assert (lines[0]["answer"], lines[0]["tokens"], lines[0]["forwards"]) == (
        *(alone[name] for name in ("answer", "tokens", "forwards")),
    )
    assert lines[1]["answer"] == infer(capsys, causal_dir, "--prompt", "is there a circle?")["answer"]
    assert [line.get("expected") for line in lines] == ["red", "yes", "it is red", None]
    assert all(line["exact_match"] == (line["answer"] == line["expected"]) for line in lines[:3])
    assert "none.png" in lines[3]["error"]
    assert "answer" not in lines[3]
    assert "1 records could not be answered; the first: " in err
    assert "3 answers with" in printed
    assert "of 3 records" in printed
    summary = json.loads((tmp_path / "answers.json").read_text())
    assert (summary["records"], summary["answered"]) == (4, 3)
    assert summary["tokens"] == sum(line["tokens"] for line in lines[:3])
    assert summary["exact_match"] == pytest.approx(sum(line["exact_match"] for line in lines[:3]) / 3)
    assert summary["exact_match_stderr"] >= 0
    assert {path.name for path in tmp_path.glob("*answers*")} == {"answers.jsonl", "answers.json"}


def test_an_ar_model_answers_too(answer, base_dir):
    code, _, _, lines = answer(base_dir, "--batch-size", "3", "--limit", "3")
    assert code == 0
    assert len(lines) == 3
    assert all(line["forwards"] == line["tokens"] for line in lines)


@pytest.mark.parametrize("decoding", ["autoregressive", "speculative"])
def test_a_new_translation_writes_what_its_base_writes(answer, base_dir, causal_dir, tmp_path, decoding):
    """Before any training: its clean stream is the AR model."""
    lines = answer(causal_dir, "--decoding", decoding)[3]
    own = answer(base_dir, out=tmp_path / "base.jsonl")[3]
    assert [line.get("answer") for line in lines] == [line.get("answer") for line in own]
    assert [line.get("tokens") for line in lines] == [line.get("tokens") for line in own]


def test_a_run_that_was_stopped_goes_on(answer, translated_dir, tmp_path, monkeypatch):
    whole = answer(translated_dir, out=tmp_path / "whole.jsonl")[3]
    seen = []
    real = answerer.encode

    def stopped(processor, records):
        seen.append(records[0].name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(processor, records)

    monkeypatch.setattr(answerer, "encode", stopped)
    code, _, err, lines = answer(translated_dir, "--batch-size", "1")
    assert (code, err.splitlines()[-1]) == (130, "diffusionvl answer: interrupted")
    assert len(lines) == 2
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"index": 2, "answer": "cut o')
    monkeypatch.setattr(answerer, "encode", real)
    code, _, err, lines = answer(translated_dir)
    assert "2 of 4 records are answered already" in err
    strip = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    assert strip == [{name: value for name, value in line.items() if name != "seconds"} for line in whole]


def test_answers_to_something_else_are_not_replaced(answer, translated_dir, tmp_path):
    answer(translated_dir, "--limit", "1")
    code, _, err, lines = answer(translated_dir, "--limit", "2")
    assert (code, len(lines)) == (2, 1)
    assert "holds answers to something else (count 1 there, 2 now); give another --out, or --overwrite" in err
    assert answer(translated_dir, "--limit", "2", "--overwrite")[0] == 0
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("{}\n")
    code, _, err, _ = answer(translated_dir, out=foreign)
    assert (code, foreign.read_text()) == (2, "{}\n")
    assert "was not written by `diffusionvl answer`" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch-size", "0"), "--batch-size 0: give 1 or more"),
        (("--limit", "-1"), "--limit -1"),
        (("--denoising-steps", "99"), "denoising_steps=99 exceeds the block size"),
        (("--denoising-steps", "0"), "--denoising-steps must be"),
        (("--temperature", "nan"), "--temperature must be"),
        (("--device", "frog"), "'frog'"),
        (("--image-root", "/none"), "/none"),
    ],
)
def test_bad_flags_are_one_line(answer, translated_dir, flags, said, tmp_path):
    code, out, err, _ = answer(translated_dir, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "answers.jsonl").exists()


def test_the_records_are_not_replaced(answer, translated_dir, records):
    before = records.read_text()
    code, _, err, _ = answer(translated_dir, out=records)
    assert code == 2
    assert "would replace the records" in err
    assert records.read_text() == before


def test_a_setting_that_ar_models_do_not_have_is_one_line(answer, base_dir):
    code, _, err, _ = answer(base_dir, "--remasking", "low_confidence_static")
    assert code == 2
    assert "an autoregressive checkpoint has no remasking" in err


def test_a_record_without_an_expected_answer_is_answered_and_not_scored(translated_dir, tmp_path, capsys):
    path, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "why?"}]}\n')
    argv = (
        "answer",
        str(path),
        "--model",
        translated_dir,
        "--out",
        str(out),
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    )
    code, printed, _ = run(capsys, *argv)
    assert code == 0
    assert "exact match" not in printed
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["tokens"] <= 4
    assert not {"expected", "exact_match"} & line.keys()
