"""`diffusionvl infer`: what it prints, and one clear line with exit code 2 for every input that cannot be used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.cli import main as cli
from diffusionvl.commands.model_flags import DECODING
from diffusionvl.data.prompts import encode, question
from diffusionvl.drawing.film import side_by_side
from diffusionvl.infer import main
from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from diffusionvl.modeling.remasking import REMASKING

QUESTION = "what is the color of the shape?"


@pytest.fixture
def base(base_dir):
    return base_dir


@pytest.fixture
def checkpoint(causal_dir):
    return causal_dir


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return str(path)


def run(capsys, *argv):
    """Exit code, stdout and stderr of one call."""
    capsys.readouterr()
    try:
        code = main(["--device", "cpu", "--prompt", QUESTION, *argv])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("argv", [["--model", "/none", "--prompt", "x"], ["--top-k", "many"]])
def test_heavy_imports_wait_for_good_arguments(argv):
    code = (
        "import sys\nfrom diffusionvl.cli import main\n"
        f"try: main(['infer', *{argv!r}])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_streams_the_answer_and_prints_its_cost(checkpoint, image, capsys):
    argv = ("--model", checkpoint, "--image", image, "--max-new-tokens", "16")
    code, streamed, cost = run(capsys, *argv)
    assert code == 0
    assert len(cost.splitlines()) == 1
    assert "16 tokens, 16 forwards, 1.00 tokens per forward" in cost
    assert run(capsys, *argv, "--no-stream")[1].strip() == streamed.strip()
    assert "\033" not in streamed  # drafts are for terminals


def test_json_is_what_generate_gives(checkpoint, image, capsys):
    code, out, err = run(
        capsys, "--model", checkpoint, "--image", image, "--json", "--max-new-tokens", "16", "--denoising-steps", "2"
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    model = DiffusionVLForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = load_processor(checkpoint)
    inputs = encode(processor, [question(QUESTION, [image])])
    output = model.generate(**inputs, max_new_tokens=16, denoising_steps=2, return_dict_in_generate=True)
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert report["answer"] == processor.decode(new, skip_special_tokens=True).strip()
    assert report["tokens"] == len(new)
    assert report["forwards"] == int(output.forwards[0])
    assert report["tokens_per_forward"] == pytest.approx(report["tokens"] / report["forwards"], abs=1e-4)
    assert report["seconds"] > 0
    assert report["settings"].keys() == {*DECODING, "block_size", "seed", "device", "dtype"}
    used = {"max_new_tokens": 16, "denoising_steps": 2, "temperature": 0.0, "block_size": 8, "dtype": "float32"}
    assert used.items() <= report["settings"].items()


def test_text_alone_and_several_images(checkpoint, image, capsys):
    for images in ([], ["--image", image, "--image", image]):
        code, out, _ = run(capsys, "--model", checkpoint, *images, "--json", "--max-new-tokens", "8")
        assert code == 0
        assert json.loads(out)["tokens"] <= 8


def test_a_picture_may_be_on_the_web_if_that_is_allowed(checkpoint, image, capsys, monkeypatch):
    argv = ["--model", checkpoint, "--json", "--max-new-tokens", "4"]
    content = Path(image).read_bytes()
    monkeypatch.setattr("diffusionvl.data.images.fetch", lambda url, policy: content)
    code, out, _ = run(capsys, *argv, "--image", "https://a.org/b.png", "--allow-web")
    assert (code, json.loads(out)["answer"]) == (0, json.loads(run(capsys, *argv, "--image", image)[1])["answer"])
    code, _, err = run(capsys, *argv, "--image", "https://a.org/b.png")
    assert code == 2
    assert "is on the web; download it, or add --allow-web" in err


def test_an_answer_ends_at_a_text_or_in_time(checkpoint, capsys):
    argv = ("--model", checkpoint, "--json", "--max-new-tokens", "40")
    free = json.loads(run(capsys, *argv)[1])
    ended = json.loads(run(capsys, *argv, "--stop", "no such text", "--stop", free["answer"][3:5])[1])
    assert free["answer"].startswith(ended["answer"])
    assert free["answer"][3:5] in ended["answer"]
    assert ended["tokens"] < free["tokens"]
    assert json.loads(run(capsys, *argv, "--max-time", "0")[1])["tokens"] == 0


@pytest.mark.parametrize("remasking", [*REMASKING, "leftmost"])
def test_every_policy_can_be_chosen(checkpoint, capsys, monkeypatch, remasking):
    """A new one, too: it is a function in a table."""

    def leftmost(draft, sampling):
        return draft.masked & (draft.masked.cumsum(-1) <= draft.quota)

    monkeypatch.setitem(REMASKING, "leftmost", leftmost)
    argv = ("--model", checkpoint, "--json", "--max-new-tokens", "4", "--remasking", remasking)
    assert json.loads(run(capsys, *argv)[1])["settings"]["remasking"] == remasking


def test_a_seed_repeats_the_draws(checkpoint, capsys):
    argv = ("--model", checkpoint, "--json", "--temperature", "2", "--max-new-tokens", "8", "--seed")
    answers = [json.loads(run(capsys, *argv, seed)[1])["answer"] for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("suffix", [".gif", ".html"])
def test_film(checkpoint, image, capsys, tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    argv = ("--model", checkpoint, "--image", image, "--image", image, "--max-new-tokens", "8", "--film", str(path))
    assert run(capsys, *argv)[0] == 0
    if suffix == ".gif":
        with Image.open(path) as film:
            assert film.n_frames == 8
    else:
        assert path.read_text(encoding="utf-8").count("data-step=") == 8


def test_cli_hands_over(checkpoint, capsys):
    assert cli(["infer", "--model", checkpoint, "--prompt", "x", "--json", "--max-new-tokens", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] <= 8


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--image", "{tmp}/none.png"], ["--image", "none.png", "no such file"]),
        (["--image", "{tmp}/junk.png"], ["junk.png", "cannot be read"]),
        (["--film", "{tmp}/film.mp4"], ["--film", "film.mp4", ".gif, .html"]),
        (["--film", "{tmp}/none/film.gif"], ["--film", "none", "make it first"]),
        (["--remasking", "magic"], ["--remasking", "'magic'", "low_confidence_dynamic", "entropy_bounded"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens", "at least 1", "0"]),
        (["--denoising-steps", "0"], ["--denoising-steps", "at least 1"]),
        (["--denoising-steps", "9"], ["denoising_steps=9", "1 to 8"]),
        (["--confidence-threshold", "1.5"], ["--confidence-threshold", "[0, 1]", "1.5"]),
        (["--temperature", "-1"], ["--temperature", "-1"]),
        (["--top-p", "0"], ["--top-p", "(0, 1]"]),
        (["--top-k", "few"], ["--top-k", "few"]),
        (["--entropy-bound", "-1"], ["--entropy-bound", "-1", "at least 0"]),
        (["--max-time", "-1"], ["--max-time", "-1", "seconds"]),
        (["--stop", ""], ["--stop-strings", "not empty"]),
        (["--seed", "-3"], ["--seed", "-3"]),
        (["--device", "frog"], ["device", "frog", "cpu"]),
        (["--dtype", "int4"], ["--dtype", "int4", "bfloat16"]),
        (["--prompt", "<|image_pad|>"], ["image"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_bad_input_is_one_line_and_code_2(checkpoint, capsys, tmp_path, argv, said):
    (tmp_path / "junk.png").write_text("no picture")
    refused(capsys, ["--model", checkpoint, *(word.format(tmp=tmp_path) for word in argv)], said)


def refused(capsys, argv, said):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("diffusionvl infer: error: ")
    for part in said:
        assert part in err


def test_bad_models(base, checkpoint, capsys, tmp_path):
    refused(capsys, ["--model", str(tmp_path / "none")], ["--model", "no such folder", "diffusionvl translate"])
    refused(capsys, ["--model", base], [base, "autoregressive", "qwen2_5_vl", f"diffusionvl translate {base}"])
    refused(capsys, ["--model", str(tmp_path)], [str(tmp_path), "no checkpoint"])
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(capsys, ["--model", str(broken)], [str(broken), "weights are broken"])
    weights.unlink()
    refused(capsys, ["--model", str(broken)], [str(broken), "weights cannot be read"])


def test_missing_weights_are_not_made_up(checkpoint, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "partial"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(capsys, ["--model", str(folder)], ["lacks weights", name.rpartition("layers")[2]])


def test_pictures_side_by_side():
    wide, tall = Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))
    assert side_by_side([wide]) is wide
    assert side_by_side([wide, tall], height=40).size == (80 + 8 + 20, 40)


def test_default_device_is_cuda_if_there_is_one():
    from diffusionvl.checkpoints.loading import find_device

    assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|mask|>"])
def test_special_tokens_in_the_prompt_are_refused(checkpoint, capsys, token):
    refused(capsys, ["--model", checkpoint, "--prompt", f"is {token} it?"], ["--prompt", token])


def test_a_prompt_in_another_encoding_is_refused(checkpoint, capsys):
    refused(capsys, ["--model", checkpoint, "--prompt", "bad \udcff"], ["--prompt", "UTF-8"])


def test_a_film_that_is_a_folder_is_refused(checkpoint, capsys, tmp_path):
    refused(capsys, ["--model", checkpoint, "--film", str(tmp_path)], ["--film", "folder"])


def test_the_meta_device_is_refused(checkpoint, capsys):
    refused(capsys, ["--model", checkpoint, "--device", "meta"], ["device", "'meta'"])
