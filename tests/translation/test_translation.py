"""Translation: the base's own weights, one mask token, and a folder that stands alone."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import QUESTION, prompts
from PIL import Image
from tiny_families import save_text_only
from transformers import AutoConfig, AutoModelForImageTextToText

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration, load_processor
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_model
from diffusionvl.translation.translate import MASK_TOKEN, translate
from studies.quickstart.base import build_base, build_tokenizer


def same_weights(found, expected, rows):
    """Whether every weight is the base's; of the embeddings, the first `rows` rows."""
    matrices = ("embed_tokens.weight", "lm_head.weight")
    for name, value in expected.state_dict().items():
        own = found.state_dict()[f"base.{name}"]
        if not torch.equal(own[:rows] if name.endswith(matrices) else own, value):
            return False
    return True


@pytest.fixture(params=["tied", "untied"])
def make_base(request, tmp_path):
    """A function that saves an AR base; without `spare` rows its embeddings end where the vocabulary does."""

    def make(spare, mask_token=None, missing=0):
        model, processor = build_base()
        tied = request.param == "tied"
        if not tied:
            model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
            model = type(model)(model.config)
        if mask_token:
            processor.tokenizer.add_special_tokens({"mask_token": mask_token})
        if not spare:
            model.resize_token_embeddings(len(processor.tokenizer) - missing)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        model.save_pretrained(tmp_path / "base")
        processor.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base"), model, len(processor.tokenizer)

    return make


def test_the_mask_token_takes_an_unused_row(make_base, caplog):
    caplog.set_level("INFO", "diffusionvl")
    folder, base, size = make_base(spare=True)
    model, processor = translate(folder)
    rows = base.get_input_embeddings().num_embeddings
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id == size < rows
    assert caplog.messages[-1] == f"mask token {MASK_TOKEN!r} has id {size}: an unused row of the {rows} embeddings"
    assert same_weights(model, base, rows)
    assert model.get_input_embeddings().num_embeddings == rows


def test_a_full_matrix_gets_one_row_the_mean_of_the_others(make_base, tmp_path, caplog):
    caplog.set_level("INFO", "diffusionvl")
    folder, base, size = make_base(spare=False)
    model, processor = translate(folder)
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id == size
    assert caplog.messages[-1] == f"mask token {MASK_TOKEN!r} has id {size}: one row added to the embeddings"
    assert same_weights(model, base, size)
    save_checkpoint(model, processor, str(tmp_path / "out"))
    for each in (model, load_model(str(tmp_path / "out"))):
        assert each.config.get_text_config().vocab_size == size + 1
        for matrix, own in (
            (each.get_input_embeddings().weight, base.get_input_embeddings().weight),
            (each.get_output_embeddings().weight, base.lm_head.weight),
        ):
            assert len(matrix) == size + 1
            torch.testing.assert_close(matrix[size], own.mean(0))
    ids = torch.tensor([[1, size, 2]])
    assert model(input_ids=ids).logits.shape == (1, 3, size + 1)


def test_tokens_without_rows_are_reported(make_base, caplog):
    caplog.set_level("INFO", "diffusionvl")
    folder, _, size = make_base(spare=False, missing=2)
    model, _ = translate(folder)
    assert model.get_input_embeddings().num_embeddings == size + 1
    assert caplog.messages[-1] == f"mask token {MASK_TOKEN!r} has id {size}: one of 3 rows added to the embeddings"


def test_a_tokenizer_keeps_the_mask_token_it_has(make_base, caplog):
    caplog.set_level("INFO", "diffusionvl")
    folder, base, size = make_base(spare=True, mask_token="[MASK]")
    model, processor = translate(folder)
    rows = base.get_input_embeddings().num_embeddings
    assert processor.tokenizer.mask_token == "[MASK]"
    assert model.config.mask_token_id == size - 1
    assert (
        caplog.messages[-1]
        == f"mask token '[MASK]' has id {size - 1}: the tokenizer's own row of the {rows} embeddings"
    )
    assert len(processor.tokenizer) == size
    assert same_weights(model, base, rows)


def test_translations_are_identical(make_base):
    folder, _, _ = make_base(spare=False)
    torch.manual_seed(1)
    first, _ = translate(folder)
    torch.manual_seed(2)
    second, _ = translate(folder)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    assert first.config.to_dict() == second.config.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_size", 4), ("position_mode", "sequential"), ("block_origin", "absolute"), ("clean_attention", "block")],
)
def test_settings_land_in_the_config(base_dir, tmp_path, name, value):
    save_checkpoint(*translate(base_dir, **{name: value}), str(tmp_path))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, DiffusionVLConfig)
    assert getattr(config, name) == value
    assert f"| {value} |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        translate(base_dir, **{name: 0 if name == "block_size" else "other"})


def test_a_new_translation_is_causal_and_a_checkpoint_that_does_not_say_has_blocks(causal_dir, tmp_path):
    """The reference's checkpoints, and those from before the setting, say nothing."""
    assert AutoConfig.from_pretrained(causal_dir).clean_attention == "causal"
    shutil.copytree(causal_dir, tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    del config["clean_attention"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path / "old")).config.clean_attention == "block"


def test_the_folder_holds_all_parts(translated_dir, base_dir, request):
    files = {path.name for path in request.config.rootpath.joinpath(translated_dir).iterdir()}
    assert files >= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "README.md",
    }
    card = request.config.rootpath.joinpath(translated_dir, "README.md").read_text(encoding="utf-8")
    assert f"base_model: {base_dir}\n" in card
    assert "{{" not in card


@pytest.mark.parametrize(
    "imports",
    [
        "import diffusionvl, transformers",
        "import transformers; transformers.Trainer; import diffusionvl",
        "from transformers import quantizers; import diffusionvl, transformers",
        "from diffusionvl import DiffusionVLForConditionalGeneration; import transformers",
    ],
)
def test_auto_classes_know_the_folder_once_diffusionvl_is_imported(translated_dir, imports):
    code = (
        f"{imports}\n"
        f"print(type(transformers.AutoConfig.from_pretrained({translated_dir!r})).__name__)\n"
        f"print(type(transformers.AutoModelForImageTextToText.from_pretrained({translated_dir!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["DiffusionVLConfig", "DiffusionVLForConditionalGeneration"], done.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import diffusionvl, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_mask_token_round_trips(translated_dir, processor):
    config = AutoConfig.from_pretrained(translated_dir)
    tokenizer = processor.tokenizer
    assert tokenizer.mask_token == MASK_TOKEN
    assert tokenizer.mask_token_id == config.mask_token_id
    ids = tokenizer(f"red{MASK_TOKEN}{MASK_TOKEN}circle", add_special_tokens=False)["input_ids"]
    assert ids.count(config.mask_token_id) == 2
    assert tokenizer.decode(ids) == f"red{MASK_TOKEN}{MASK_TOKEN}circle"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "redcircle"


def test_pixels_land_in_the_processor(base_dir, tmp_path):
    """They decide how many tokens a picture takes, in training and decoding alike."""
    save_checkpoint(*translate(base_dir, min_pixels=64 * 64, max_pixels=128 * 128), str(tmp_path))
    processor = load_processor(str(tmp_path))
    for side, tokens in ((32, 16), (64, 16), (500, 64)):
        inputs = processor(text=["<|image_pad|>"], images=[Image.new("RGB", (side, side))], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == tokens
    kept = translate(base_dir, max_pixels=128 * 128)[1].image_processor.size
    assert kept["shortest_edge"] == load_processor(base_dir).image_processor.size["shortest_edge"]


@pytest.mark.parametrize("pixels", [{"min_pixels": 0}, {"min_pixels": 200, "max_pixels": 100}])
def test_pixels_that_can_not_be(base_dir, pixels):
    with pytest.raises(ValueError, match="min_pixels must be positive and at most max_pixels, got"):
        translate(base_dir, **pixels)


def test_pixels_are_a_setting_of_qwen(tmp_path):
    save_text_only(tmp_path / "base")
    build_tokenizer(["a"]).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="settings of the Qwen-VL families; TextProcessor"):
        translate(str(tmp_path / "base"), max_pixels=100)


def test_every_eos_of_the_base_still_ends_an_answer(base_dir, tmp_path):
    model, processor = AutoModelForImageTextToText.from_pretrained(base_dir), load_processor(base_dir)
    other = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.generation_config.eos_token_id = [other]
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    save_checkpoint(*translate(str(tmp_path / "base")), str(tmp_path / "out"))
    loaded = DiffusionVLForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert set(loaded.generation_config.eos_token_id) == {other, processor.tokenizer.eos_token_id}
    assert loaded.config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), (torch.float32, torch.float32)])
def test_the_type_of_the_weights_is_the_checkpoints_own(base_dir, tmp_path, dtype, expected):
    AutoModelForImageTextToText.from_pretrained(base_dir, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    load_processor(base_dir).save_pretrained(tmp_path / "base")
    save_checkpoint(*translate(str(tmp_path / "base"), dtype=dtype), str(tmp_path / "out"))
    loaded = load_model(str(tmp_path / "out"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.config.dtype == expected


def test_a_saved_translation_answers_as_the_translation_does(base_dir, causal_dir, pictures):
    model, processor = translate(base_dir)
    loaded = load_model(causal_dir)
    inputs = prompts(load_processor(causal_dir), (QUESTION, pictures[0]), (QUESTION,))
    own = prompts(processor, (QUESTION, pictures[0]), (QUESTION,))
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    expected = model.generate(**own, max_new_tokens=9)
    assert torch.equal(loaded.eval().generate(**inputs, max_new_tokens=9), expected)
