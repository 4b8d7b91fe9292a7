"""The `diffusionvl` command: what goes where, and a mistake is one line with exit code 2."""

import json
import runpy
import subprocess
import sys

import pytest
from helpers import QUESTION, run
from safetensors.torch import load_file
from tiny_families import save_base
from transformers import AutoConfig


def test_translate_train_infer(base_dir, pictures, tmp_path, capsys):
    """The three commands in turn, each on what the one before wrote."""
    code, out, _ = run(capsys, "translate", base_dir, "--out", str(tmp_path / "new" / "init"), "--block-size", "4")
    assert code == 0
    message, wrote = out.splitlines()
    assert "mask token '<|mask|>' has id" in message
    assert wrote == f"wrote {tmp_path / 'new' / 'init'}"
    assert AutoConfig.from_pretrained(tmp_path / "new" / "init").block_size == 4
    record = {"images": [pictures[0]], "messages": [{"role": "user", "content": [{"type": "image"}]}]}
    record["messages"].append({"role": "assistant", "content": "red"})
    (tmp_path / "records.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {tmp_path}/new/init\ntrain_records: [{tmp_path}/records.jsonl]\noutput_dir: {tmp_path}/model\n"
    )
    code, _, _ = run(capsys, "train", str(tmp_path / "recipe.yaml"), "--max_steps", "1", "--save_strategy", "no")
    assert code == 0
    code, out, _ = run(
        capsys,
        *("infer", "--model", str(tmp_path / "model"), "--image", pictures[0], "--prompt", QUESTION),
        *("--device", "cpu", "--json", "--max-new-tokens", "6"),
    )
    assert code == 0
    report = json.loads(out)
    assert (report["tokens"], report["settings"]["block_size"]) == (6, 4)


@pytest.mark.parametrize(("name", "count"), [("Gemma 2", 0), ("LLaVA-OneVision", 2)])
def test_the_commands_on_other_families(name, count, pictures, tmp_path, capsys):
    """A text model, whose checkpoint has a tokenizer alone; and one whose pictures are cut into tiles."""
    save_base(name, str(tmp_path / "base"))
    assert run(capsys, "translate", str(tmp_path / "base"), "--out", str(tmp_path / "init"))[0] == 0
    tag = "image-text-to-text" if count else "text-generation"
    assert f"pipeline_tag: {tag}\n" in (tmp_path / "init" / "README.md").read_text(encoding="utf-8")
    question = {"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": QUESTION}]}
    record = {"images": pictures[:count], "messages": [question, {"role": "assistant", "content": "red"}]}
    (tmp_path / "records.jsonl").write_text(json.dumps(record), encoding="utf-8")
    settings = ("--max_steps", "1", "--save_strategy", "no", "--disable_tqdm", "yes")
    for model, out, more in (("base", "ar", ("--objective", "ar")), ("init", "model", ())):
        paths = ("--model", str(tmp_path / model), "--output_dir", str(tmp_path / out))
        assert (
            run(capsys, "train", *paths, "--train_records", str(tmp_path / "records.jsonl"), *settings, *more)[0] == 0
        )
    assert run(capsys, "translate", str(tmp_path / "ar"), "--out", str(tmp_path / "again"))[0] == 0
    images = [word for picture in pictures[:count] for word in ("--image", picture)]
    infer = ("infer", "--model", str(tmp_path / "model"), *images, "--prompt", QUESTION, "--device", "cpu", "--json")
    code, out, _ = run(capsys, *infer, "--max-new-tokens", "6", "--film", str(tmp_path / "film.html"))
    assert code == 0
    assert json.loads(out)["tokens"] <= 6
    assert (tmp_path / "film.html").exists()


def test_a_picture_for_a_text_model_is_one_line(pictures, tmp_path, capsys):
    save_base("Llama", str(tmp_path / "base"))
    assert run(capsys, "translate", str(tmp_path / "base"), "--out", str(tmp_path / "model"))[0] == 0
    code, out, err = run(
        capsys, "infer", "--model", str(tmp_path / "model"), "--image", pictures[0], "--prompt", "why?"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "reads text alone" in err


def test_a_token_without_a_name_in_a_prompt_is_refused(tmp_path, capsys):
    """Gemma's `<end_of_turn>` is none of its tokenizer's named special tokens."""
    save_base("Gemma 2", str(tmp_path / "base"))
    assert run(capsys, "translate", str(tmp_path / "base"), "--out", str(tmp_path / "model"))[0] == 0
    code, _, err = run(capsys, "infer", "--model", str(tmp_path / "model"), "--prompt", "why? <end_of_turn>")
    assert (code, err.count("\n")) == (2, 1)
    assert "--prompt: the text of a turn holds '<end_of_turn>'" in err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--help"], ["assemble", "convert", "translate", "export", "train", "infer"]),
        (["assemble", "--help"], ["--lm", "--vision", "--image-grid", "--projector", "--dtype", "--seed"]),
        (["convert", "--help"], ["{llada,hustvl}", "--to-reference"]),
        (["translate", "--help"], ["--out", "--block-size", "--position-mode", "--block-origin"]),
        (["train", "--help"], ["diffusionvl train [recipe.yaml]", "--objective"]),
        (["infer", "--help"], ["--image", "--denoising-steps"]),
    ],
)
def test_help(capsys, argv, parts):
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert all(part in out for part in parts)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "COMMAND"),
        (["tranlate"], "'tranlate'"),
        (["translate"], "base, --out"),
        (["assemble", "--lm", "x", "--out", "y"], "--vision"),
        (["assemble", "--lm", "x", "--vision", "y", "--out", "z", "--image-grid", "tiles"], "'tiles'"),
        (["convert", "gguf", "x", "y"], "'gguf'"),
        (["translate", "base", "--out", "x", "--block_sise", "4"], "--block_sise 4"),
        (["translate", "base", "--out", "x", "--block-size", "many"], "'many'"),
        (["translate", "base", "--out", "x", "--position-mode", "rope"], "'rope'"),
        (["train", "--unheard_of", "1", "--model=m", "--train_records=r", "--output_dir=o"], "--unheard_of 1"),
        (["infer", "--unheard-of", "1", "--model", "m", "--prompt", "p"], "--unheard-of 1"),
    ],
)
def test_a_mistake_is_one_line(capsys, argv, part):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert part in err
    assert err.startswith("diffusionvl")
    assert err.count("\n") == 1


@pytest.mark.parametrize("settings", [["--block-size", "0"], ["--out", "FILE"], ["--out", "FILE/inside"]])
def test_a_translation_that_cannot_be(base_dir, tmp_path, capsys, settings):
    (tmp_path / "file").write_text("not a folder")
    settings = [word.replace("FILE", str(tmp_path / "file")) for word in settings]
    code, out, err = run(capsys, "translate", base_dir, "--out", str(tmp_path / "out"), *settings)
    assert (code, out) == (2, "")
    error = err.splitlines()[-1]
    assert error.startswith("diffusionvl translate: error: ")
    assert settings[1] in error
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_missing_base_is_one_line(tmp_path, capsys):
    code, out, err = run(capsys, "translate", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / "none") in err


def test_the_base_is_not_written_over(base_dir, capsys):
    before = load_file(f"{base_dir}/model.safetensors").keys()
    code, _, err = run(capsys, "translate", base_dir, "--out", f"{base_dir}/")
    assert code == 2
    assert "give another folder" in err
    assert load_file(f"{base_dir}/model.safetensors").keys() == before


def test_a_translation_can_be_made_again_in_its_folder(base_dir, tmp_path, capsys):
    argv = ("translate", base_dir, "--out", str(tmp_path / "out"), "--block-size")
    assert [run(capsys, *argv, str(size))[0] for size in (2, 4)] == [0, 0]
    assert AutoConfig.from_pretrained(tmp_path / "out").block_size == 4
    (tmp_path / "out/notes.txt").write_text("mine")
    assert run(capsys, *argv, "8")[0] == 2
    assert run(capsys, *argv, "8", "--overwrite")[0] == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").block_size == 8
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_help_of_infer_imports_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['infer', '--help']\n"
        "try: runpy.run_module('diffusionvl.infer', run_name='__main__')\n"
        "except SystemExit as exit_: code = exit_.code\n"
        "print(code, sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "0 []"
    assert "--denoising-steps" in done.stdout


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffusionvl", "--help"])
    monkeypatch.delitem(sys.modules, "diffusionvl.cli")
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("diffusionvl.cli", run_name="__main__")
    assert exit_.value.code == 0
    assert "COMMAND" in capsys.readouterr().out


def test_a_template_that_is_no_text(base_dir, tmp_path, capsys):
    (tmp_path / "template.jinja").write_bytes(b"\xff")
    argv = ("translate", base_dir, "--out", str(tmp_path / "out"), "--chat-template", str(tmp_path / "template.jinja"))
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "template.jinja' is not written in UTF-8" in err
