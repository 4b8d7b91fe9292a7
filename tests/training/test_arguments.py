"""Recipes and flags: one parser, the command line wins, and a mistake is one line with exit code 2."""

import pytest
import torch
import yaml

from diffusionvl.commands.recipe import parse_arguments
from diffusionvl.training.arguments import BlockDiffusionConfig
from diffusionvl.training.model_arguments import ModelArguments


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe: text as it is, or a mapping to which the required keys are added."""

    def write(content):
        path = tmp_path / "recipe.yaml"
        if isinstance(content, dict):
            required = {"model": "some/model", "train_records": ["a.jsonl"], "output_dir": str(tmp_path)}
            content = yaml.safe_dump({**required, **content})
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def refused(capsys, *argv):
    """The one line on stderr with which the arguments are refused."""
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(list(argv))
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("diffusionvl train: error: ")
    assert err.count("\n") == 1
    return err


def test_the_command_line_wins_over_the_recipe(recipe):
    path = recipe({"learning_rate": 1e-3, "max_steps": 7, "max_length": 64})
    model, data, args = parse_arguments([path, "--max_steps", "9", "--dtype", "bfloat16", "--train_records", "b", "c"])
    assert (args.learning_rate, args.max_steps, data.max_length) == (1e-3, 9, 64)
    assert (model.model, model.dtype, data.train_records) == ("some/model", "bfloat16", ["b", "c"])
    assert args.normalizer == "per_sample"


def test_no_recipe_is_needed(tmp_path):
    model, data, args = parse_arguments(
        ["--model", "m", "--train-records", "a", "--output-dir", str(tmp_path), "--objective=ar", "--do_train"]
    )
    assert (model.model, data.train_records, args.objective, args.do_train) == ("m", ["a"], "ar", True)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("save_strategy: no", "save_strategy", "no"),
        ("eval_strategy: off", "eval_strategy", "no"),
        ('save_strategy: "no"', "save_strategy", "no"),
        ("remove_unused_columns: no", "remove_unused_columns", False),
        ("average_tokens_across_devices: false", "average_tokens_across_devices", False),
        ("do_train: true", "do_train", True),
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("max_steps: -1", "max_steps", -1),
        ("run_name: -a name-", "run_name", "-a name-"),
        ("report_to: null", "report_to", []),
        ("vision_learning_rate:", "vision_learning_rate", None),
        (
            "lr_scheduler_kwargs: {min_lr: 1e-5, num_cycles: 2}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-5, "num_cycles": 2},
        ),
        ("accelerator_config:\n  even_batches: false", "accelerator_config.even_batches", False),
        ("train_modules: [projector, vision_tower]", "train_modules", ["projector", "vision_tower"]),
    ],
)
def test_yaml_values_mean_what_they_say(recipe, tmp_path, line, name, value):
    found = parse_arguments(
        [recipe(f"model: m\ntrain_records: [a]\noutput_dir: {tmp_path}\n{line}\n")],
    )[2]
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(("processes", "rows", "steps"), [(1, 8, 32), (8, 8, 4), (32, 8, 1), (8, 1, 32)])
def test_the_global_batch_size_is_kept_for_any_number_of_processes(recipe, processes, rows, steps):
    path = recipe({"global_batch_size": 256, "per_device_train_batch_size": rows})
    args = parse_arguments([path, "--dry_run", "--dry_run_processes", str(processes)])[2]
    assert args.gradient_accumulation_steps == steps


@pytest.mark.parametrize(
    "settings",
    [
        {"stage": "ar", "objective": "ar"},
        {"stage": "translate"},
        {"stage": "align", "objective": "ar", "train_modules": ["projector"]},
        {"stage": "align", "train_modules": ["projector"]},
    ],
)
def test_a_stage_that_fits_the_recipe(recipe, settings):
    assert parse_arguments([recipe(settings)])[2].stage == settings["stage"]


def test_gradient_checkpointing_has_one_name_in_all_versions(recipe, recwarn):
    assert parse_arguments([recipe({"gradient_checkpointing": True})])[2].gradient_checkpointing is True
    assert not recwarn


def test_null_leaves_out_and_a_flag_puts_in(recipe):
    path = recipe({"max_length": None, "eval_records": None, "vision_learning_rate": None})
    _, data, args = parse_arguments([path, "--max_length", "5"])
    assert (data.max_length, data.eval_records, args.vision_learning_rate) == (5, None, None)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"learning_rat": 0.1}, ["learning_rat", "0.1"]),  # no abbreviation of learning_rate
        ({"unheard_of": None}, ["unheard_of"]),
        ({"learning_rate": "abc"}, ["learning_rate", "'abc'"]),
        ({"learning_rate": None}, ["learning_rate", "null"]),
        ({"learning_rate": [1, 2]}, ["2"]),
        ({"max_steps": 1.5}, ["max_steps", "1.5"]),
        ({"bf16": "perhaps"}, ["bf16", "perhaps"]),
        ({"train_records": []}, ["train_records"]),
        ({"max_length": 0}, ["max_length", "0"]),
        ({"pack_tokens": 0}, ["pack_tokens", "0"]),
        ({"noisy_views": 0}, ["noisy_views", "0"]),
        ({"max_bad_samples": -1}, ["max_bad_samples", "-1"]),
        ({"attention": "flash"}, ["attention", "flash", "flex"]),
        ({"lora_r": 0}, ["lora_r", "0"]),
        ({"lora_r": 4, "lora_dropout": 1.0}, ["lora_dropout", "1.0"]),
        ({"lora_alpha": 8}, ["lora_alpha does nothing without lora_r"]),
        ({"lora_r": 4, "quantization": "8bit"}, ["quantization", "'8bit'", "4bit"]),
        ({"stage": "finetune"}, ["stage", "'finetune'", "align"]),
        ({"stage": "ar"}, ["stage 'ar'", "objective='block_diffusion'"]),
        ({"stage": "translate", "objective": "ar"}, ["stage 'translate'", "objective='ar'"]),
        ({"stage": "align"}, ["stage 'align'", "train_modules=None"]),
        ({"global_batch_size": 0}, ["global_batch_size 0", "8 x 1 processes"]),
        ({"global_batch_size": 12}, ["global_batch_size 12", "per_device_train_batch_size 8 x 1 processes = 8"]),
        ({"global_batch_size": 16, "gradient_accumulation_steps": 3}, ["gradient_accumulation_steps 3", "16"]),
        ({"max_steps": 0}, ["max_steps", "0", "num_train_epochs"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size", "0"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps", "0"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"vision_learning_rate": -1.0}, ["vision_learning_rate", "-1.0"]),
        ({"output_dir": ""}, ["output_dir"]),
        ({"dtype": "float8"}, ["dtype", "'float8'", "bfloat16"]),
        ({"objective": "flow"}, ["objective", "'flow'", "block_diffusion"]),
        ({"normalizer": "row"}, ["normalizer", "'row'", "per_sample"]),
        ({"train_modules": ["projector", "head"]}, ["train_modules", "'head'", "language_model"]),
        ({"noise_order": "random"}, ["noise_order", "'random'", "permuted"]),
        ({"weighting": "t"}, ["weighting", "'t'", "mask_ratio"]),
        ({"weighting": "mask_ratio", "noise_order": "reference"}, ["mask_ratio", "noise_order reference"]),
        ({"supervision": "all"}, ["supervision", "'all'", "assistant"]),
        ({"lr_scheduler_type": "sawtooth"}, ["lr_scheduler_type", "'sawtooth'", "cosine"]),
        ({"save_strategy": "yes"}, ["save_strategy", "'yes'", "'steps'"]),
        ({"optim": "adamm"}, ["optim", "'adamm'", "'adamw_torch'"]),
    ],
)
def test_a_mistake_names_key_and_value(recipe, capsys, settings, parts):
    message = refused(capsys, recipe(settings))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--unheard_of", "3"], "--unheard_of 3"),
        (["--max_step", "3"], "--max_step 3"),
        (["--learning_rate", "abc"], "'abc'"),
        (["--learning_rate"], "learning_rate"),
        (["second.yaml"], "second.yaml"),
    ],
)
def test_a_mistake_on_the_command_line(recipe, capsys, argv, part):
    assert part in refused(capsys, recipe({}), *argv)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [unclosed", "broken YAML"),
        ("model: a\n\tb: c", "line 2"),
        ("- model\n- other", "mapping"),
        ("", "mapping"),
        ("train_records: [a.jsonl]", "--model"),
        ("model: m", "--train_records"),
        ("model: m\nlearning_rate: 1e-3\nmodel: n", "key 'model' is given twice"),
        ("lr_scheduler_kwargs: {min_lr: 1, min_lr: 2}", "key 'min_lr' is given twice"),
    ],
)
def test_a_recipe_that_is_none(recipe, capsys, text, part):
    assert part in refused(capsys, recipe(text))


def test_a_missing_recipe(tmp_path, capsys):
    assert "none.yaml" in refused(capsys, str(tmp_path / "none.yaml"))
    assert str(tmp_path) in refused(capsys, str(tmp_path))


def test_a_recipe_that_is_not_text(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    assert str(path) in refused(capsys, str(path))


def test_help_explains_the_own_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["--help"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert out.startswith("usage: diffusionvl train [recipe.yaml] [--key value ...]\n")
    assert all(flag in out for flag in ("--model", "--train_records", "--objective", "--vision_learning_rate"))


@pytest.mark.parametrize("name", ["easy_vqa_base", "easy_vqa_base_shapes", "quickstart"])
def test_the_recipes_of_the_repository_parse(name, pytestconfig):
    model, data, args = parse_arguments([str(pytestconfig.rootpath / "configs" / "recipes" / f"{name}.yaml")])
    assert model.model
    assert data.train_records
    assert args.save_strategy == "no"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a CPU is chosen where there is nothing better")
def test_bf16_trains_on_a_cpu_without_being_told_to(tmp_path):
    args = BlockDiffusionConfig(output_dir=str(tmp_path), bf16=True)
    assert args.device.type == "cpu"
    assert args.bf16


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"draft_decay": 4.0}, "draft_decay=4.0 belongs to drafts"),
        ({"draft": True, "teacher_top_k": 4}, "teacher_top_k needs targets 'teacher'"),
        ({"draft": True, "dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "cuts rows anew"),
        ({"objective": "ar", "ar_weight": 1.0}, "ar_weight belongs to objective 'block_diffusion'"),
    ],
)
def test_settings_of_drafts_that_do_not_fit(tmp_path, settings, part):
    with pytest.raises(ValueError, match=part):
        BlockDiffusionConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({}, "lora_on 'noisy' needs lora_r"),
        ({"lora_r": 4, "lora_dropout": 0.1}, "lora_dropout is not used with lora_on 'noisy'"),
    ],
)
def test_a_draft_only_adapter_is_low_rank(settings, part):
    with pytest.raises(ValueError, match=part):
        ModelArguments("model", lora_on="noisy", **settings)
