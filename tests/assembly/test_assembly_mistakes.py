"""Assembly refuses, in one line, what a stock checkpoint could not run as it was."""

import json
import shutil

import pytest
import transformers
from assemblies import change_lm, text_tokenizer
from helpers import run
from tiny_families import text_config
from transformers import (
    SiglipConfig,
    SiglipVisionModel,
)

from diffusionvl.assembly import assemble

REFUSED = {
    "Gemma2": ({"head_dim": 8, "final_logit_softcapping": 0.5}, "computes its logits in a way of its own"),
    "Granite": ({"logits_scaling": 8.0}, "computes its logits in a way of its own"),
    "Phi": ({}, r"does not fit into a stock LlavaForConditionalGeneration: lm_head\.bias"),
    "GPT2": ({}, "ties its LM head to embeddings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_language_model_that_a_llava_would_not_run_as_it_is(tower_dirs, tmp_path, name):
    settings, reason = REFUSED[name]
    tokenizer = text_tokenizer()
    model_class = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    model_class(model_class.config_class(**text_config(tokenizer, **settings))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        assemble(str(tmp_path), tower_dirs["siglip"], "single")


def broken(kind, lm_dir, tower_dirs, build, folder):
    """Arguments of a command that cannot work."""
    lm, tower = lm_dir, tower_dirs["siglip"]
    extra = []
    if kind in ("no template", "a fixed template"):
        lm = change_lm(lm_dir, folder, "" if kind == "no template" else "{{ 'hello' }}")
        if kind == "no template":
            (folder / "chat_template.jinja").unlink()
    elif kind == "a refusing template":
        lm = change_lm(lm_dir, folder, "{{ raise_exception('only system turns') }}")
    elif kind == "a vlm":
        lm = build("clip", "single")
    elif kind == "a tower as lm":
        lm = tower
    elif kind == "an lm as tower":
        tower = lm
    elif kind == "missing":
        tower = str(folder)
    elif kind == "no file":
        extra = ["--out", __file__]
    elif kind == "not empty":
        extra = ["--out", lm_dir]
    elif kind in ("a foreign projector", "another projector"):
        extra = ["--projector", lm_dir if kind == "a foreign projector" else build("clip", "single")]
        if kind == "another projector":
            tower = change_tower(tower, folder, hidden_size=48, num_attention_heads=2)
    else:
        changes = {
            "naflex": {"model_type": "siglip2_vision_model"},
            "no processor": {},
            "one layer": {"num_hidden_layers": 1},
        }
        tower = change_tower(tower, folder, **changes.get(kind, {"image_size": 64}))
        if kind == "no processor":
            (folder / "preprocessor_config.json").unlink()
    return ["--lm", lm, "--vision", tower, "--image-grid", "single", *extra]


def change_tower(tower, folder, **settings):
    """A SigLIP of other sizes, with the image processor of another."""
    config = SiglipConfig.from_pretrained(tower).vision_config
    for name, value in settings.items():
        if name != "model_type":
            setattr(config, name, value)
    SiglipVisionModel(config).save_pretrained(folder)
    shutil.copy(f"{tower}/preprocessor_config.json", folder)
    if "model_type" in settings:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | settings))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no template", "has no chat template"),
        ("a fixed template", "writes 'hello' for an image"),
        ("a refusing template", "refuses a user turn: only system turns"),
        ("a vlm", "a 'llava' model is more than a language model; translate it as it is"),
        ("a tower as lm", "'siglip' is neither"),
        ("an lm as tower", "a 'llama' model cannot be the vision tower; give a SigLIP"),
        ("naflex", "varying number of patches"),
        ("missing", "there is no such folder"),
        ("no file", "is a file; give a new folder"),
        ("not empty", "holds "),
        ("no processor", "copy its preprocessor_config.json, too"),
        ("one layer", "has 1 layer"),
        ("another size", "image processor makes pictures of size"),
        ("a foreign projector", "a 'llama' model has no such projector"),
        ("another projector", "linear_1.weight has shape [32, 32], this LM and tower need [32, 48]"),
    ],
)
def test_a_mistake_is_one_line(lm_dir, tower_dirs, build, tmp_path, capsys, kind, reason):
    argv = broken(kind, lm_dir, tower_dirs, build, tmp_path / "changed")
    code, out, err = run(capsys, "assemble", "--out", str(tmp_path / "out"), *argv)
    assert (code, out) == (2, "")
    assert reason in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("diffusionvl assemble: error: ")


def test_an_unknown_grid():
    with pytest.raises(ValueError, match=r"image_grid must be one of.*'tiles'"):
        assemble("lm", "tower", "tiles")
