"""The recipes of the paper's models hold the reference's hyperparameters (its training scripts; paper, section 4)."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from diffusionvl.cli import COMMANDS
from diffusionvl.commands.recipe import parse_arguments
from diffusionvl.train import main
from diffusionvl.training.parts import PARTS

ANSWER = {"from": "gpt", "value": "no"}
# In every stage; besides, AdamW and rows of at most 8192 tokens.
SHARED = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0,
    "max_grad_norm": 1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "bf16": True,
    "gradient_checkpointing": True,
    "save_steps": 800,
}
# Learning rates of all but the vision tower and of the vision tower, global batch, rows of a GPU at a time.
ALIGN = (1e-3, None, 128, 16)
TRAIN = (1e-5, 2e-6, 256, 1)
RECIPES = {
    "qwen2_5_7b_siglip2_align": ("ar", ALIGN),
    "qwen2_5_7b_siglip2_translate": ("block_diffusion", TRAIN),
    "llava_qwen_ar": ("ar", TRAIN),
    "llada_8b_align": ("block_diffusion", ALIGN),
    "llada_8b_translate": ("block_diffusion", TRAIN),
    "qwen2_5_vl_3b_translate": ("block_diffusion", TRAIN),
    "qwen2_5_vl_7b_translate": ("block_diffusion", TRAIN),
}


def read(name, pytestconfig):
    return parse_arguments([str(pytestconfig.rootpath / "configs" / "recipes" / f"{name}.yaml")])


@pytest.mark.parametrize("name", RECIPES)
def test_the_hyperparameters_are_the_references(name, pytestconfig):
    objective, (rate, vision_rate, batch, rows) = RECIPES[name]
    _, data, args = read(name, pytestconfig)
    assert {key: getattr(args, key) for key in SHARED} == SHARED
    assert args.optim.startswith("adamw_torch")
    assert (args.objective, args.learning_rate, args.vision_learning_rate) == (objective, rate, vision_rate)
    assert (args.global_batch_size, args.per_device_train_batch_size) == (batch, rows)
    assert data.max_length == 8192
    assert not args.ar_weight
    assert args.ar_weight is not None or objective == "ar"
    assert (args.train_modules or list(PARTS)) == (["projector"] if name.endswith("align") else list(PARTS))


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_says_to_run_can_be_parsed(name, pytestconfig):
    """The stage of its launch command is its own; the commands that make its model name known flags."""
    text = (pytestconfig.rootpath / "configs" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    stage, recipe = re.search(r"train_stage\.sh (\w+) (\S+)", text).groups()
    assert recipe == f"configs/recipes/{name}.yaml"
    parse_arguments([str(pytestconfig.rootpath / recipe), "--stage", stage])
    lines = text.replace("\\\n#", " ").splitlines()
    commands = [line.removeprefix("#   diffusionvl ").split() for line in lines if line.startswith("#   diffusionvl ")]
    model = parse_arguments([str(pytestconfig.rootpath / recipe)])[0].model
    parsers = {name: import_module(COMMANDS[name][0], "diffusionvl").build_parser() for name, *_ in commands}
    parsed = [(name, parsers[name].parse_args(words)) for name, *words in commands]
    assert model in [arguments.out for _, arguments in parsed] or "says how" in text
    assert {arguments.clean_attention for name, arguments in parsed if name == "translate"} <= {"block"}


def test_the_ar_baseline_is_the_translation_with_another_objective(pytestconfig):
    """Same records and budget; it starts where the translation starts."""
    diffusion, baseline = (
        {name: value for part in read(recipe, pytestconfig) for name, value in vars(part).items()}
        for recipe in ("qwen2_5_7b_siglip2_translate", "llava_qwen_ar")
    )
    differ = {name for name, value in baseline.items() if diffusion[name] != value and not name.startswith("_")}
    built = {"distributed_state", "accelerator_config", "deepspeed_plugin", "hf_deepspeed_config"}
    assert differ - built == {"model", "output_dir", "objective", "ar_weight"}
    assert (diffusion["ar_weight"], baseline["ar_weight"]) == (0, None)  # both: no loss beside the objective's own


@pytest.mark.parametrize("path", sorted(Path("configs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_dry_runs(path, base_dir, translated_dir, causal_dir, pictures, tmp_path, capsys):
    """On a tiny model and a record of one's own; 8 GPUs."""
    record = {"image": pictures[0], "conversations": [{"from": "human", "value": "<image>is it?"}, ANSWER]}
    (tmp_path / "records.json").write_text(json.dumps([record]), encoding="utf-8")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = causal_dir if recipe.get("ar_weight", 1) else translated_dir
    if recipe["objective"] == "ar":
        model = base_dir
    argv = ["--model", model, "--train_records", str(tmp_path / "records.json"), "--image_root", "/"]
    assert main([str(path), *argv, "--dry_run", "--dry_run_processes", "8"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{section}" in f"\n{out}" for section in ("model", "batch", "steps", "memory"))
