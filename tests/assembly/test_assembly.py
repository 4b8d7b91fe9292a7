"""Assembly: a stock checkpoint, a language model and a vision tower as they were; it aligns, translates and answers."""

import json
import math
import shutil

import processes
import pytest
import torch
import transformers
from helpers import QUESTION, build_picture, losses, prompts, run
from PIL import Image
from tiny_families import TEXT_TEMPLATE, WORDS, text_config
from tiny_towers import PATCH, SIDE
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipVisionModel,
)

from diffusionvl.assembly import assemble
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.training.parts import PARTS, Parts
from studies.quickstart.base import build_tokenizer

GRID = SIDE // PATCH  # patches in a row of one tile


def text_tokenizer():
    """A tokenizer without a token for images, and a template that takes strings alone."""
    tokenizer = build_tokenizer([WORDS])
    tokenizer.chat_template = TEXT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def lm_dir(tmp_path_factory):
    """Folder of a tiny Llama, with rows in its embeddings that no token uses."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = text_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**text_config(tokenizer, tie_word_embeddings=True)))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.repetition_penalty = 1.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def build(lm_dir, tower_dirs, tmp_path_factory):
    """A function that gives the folder of an assembly, made once."""
    made = {}

    def build(tower, grid):
        if (tower, grid) not in made:
            made[tower, grid] = str(tmp_path_factory.mktemp(f"{tower}-{grid}"))
            save_checkpoint(*assemble(lm_dir, tower_dirs[tower], grid), made[tower, grid])
        return made[tower, grid]

    return build


def change_lm(lm_dir, folder, chat_template=None, **settings):
    """A copy of the language model with another chat template or settings."""
    shutil.copytree(lm_dir, folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)


def picture(width, height):
    return Image.fromarray(build_picture((width, height), seed=width))


COMBINATIONS = [(tower, grid) for tower in ("siglip", "clip") for grid in ("anyres", "single")]


@pytest.mark.parametrize(("tower", "grid"), COMBINATIONS)
def test_the_weights_are_those_of_the_parts(build, lm_dir, tower_dirs, tower, grid):
    model = load_model(build(tower, grid))
    assert type(model).__name__ == ("LlavaOnevision" if grid == "anyres" else "Llava") + "ForConditionalGeneration"
    language_model = AutoModelForCausalLM.from_pretrained(lm_dir)
    for name, value in language_model.model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name], value), name
    assert model.lm_head.weight is model.get_input_embeddings().weight
    whole = (SiglipVisionModel if tower == "siglip" else CLIPVisionModel).from_pretrained(tower_dirs[tower])
    weights = whole.state_dict()
    own = model.model.vision_tower.state_dict()
    assert weights.keys() - own == {name for name in weights if name.startswith(("encoder.layers.2.", "head."))}
    assert all(torch.equal(own[name], weights[name]) for name in own)


@pytest.mark.parametrize(("tower", "grid"), COMBINATIONS)
def test_pictures_of_any_shape(build, tower, grid):
    """The processor counts as many image tokens as the model has features, saved and loaded."""
    model, processor = load_model(build(tower, grid)).eval(), load_processor(build(tower, grid))
    for size in ((SIDE, SIDE), (20, 50), (170, 150), (900, 30)):
        inputs = processor(text=["<image>"], images=[picture(*size)], return_tensors="pt")
        tokens = (inputs["input_ids"] == model.config.image_token_id).sum()
        assert tokens == GRID**2 or grid == "anyres"
        counted = processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])  # by which data sets are measured
        assert counted.num_image_tokens == [tokens]
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_the_projector_reads_the_penultimate_features(build, tower_dirs, tower):
    model, processor = load_model(build(tower, "single")).eval(), load_processor(build(tower, "single"))
    whole = (SiglipVisionModel if tower == "siglip" else CLIPVisionModel).from_pretrained(tower_dirs[tower])
    pixels = processor.image_processor(picture(50, 20), return_tensors="pt")["pixel_values"]
    features = whole(pixels, output_hidden_states=True).hidden_states[-2]
    expected = model.model.multi_modal_projector(features if tower == "siglip" else features[:, 1:])
    assert expected.shape[1] == GRID**2
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output[0], expected[0])


def reference_features(model, processor, image):
    """`anyres_max_4` with `spatial_unpad` and newlines, as the reference does it, step by step."""
    width, height = image.size
    sizes = [(SIDE * i, SIDE * j) for i in range(1, 7) for j in range(1, 7)]

    def fitness(size):
        scale = min(size[0] / width, size[1] / height)
        area = min(int(width * scale) * int(height * scale), width * height)
        return area, area - size[0] * size[1]

    best = max(sizes, key=fitness)
    scale = min(best[0] / width, best[1] / height)
    scaled = image.resize(
        (min(math.ceil(width * scale), best[0]), min(math.ceil(height * scale), best[1])), Image.Resampling.BICUBIC
    )
    canvas = Image.new("RGB", best)
    canvas.paste(scaled, ((best[0] - scaled.width) // 2, (best[1] - scaled.height) // 2))
    columns, rows = best[0] // SIDE, best[1] // SIDE
    corners = [(SIDE * x, SIDE * y) for y in range(rows) for x in range(columns)]
    tiles = [canvas.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]
    pixels = torch.stack(
        [
            (torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3) / 255 - 0.5) / 0.5
            for tile in (image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), *tiles)
        ]
    ).permute(0, 3, 1, 2)
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    base, *tiled = model.model.multi_modal_projector(features)
    whole = torch.stack(tiled).view(rows, columns, GRID, GRID, -1).permute(4, 0, 2, 1, 3)
    whole = whole.reshape(-1, rows * GRID, columns * GRID)
    if width / height > columns / rows:
        padding = (rows * GRID - round(height * columns * GRID / width, 7).__floor__()) // 2
        whole = whole[:, padding : rows * GRID - padding]
    else:
        padding = (columns * GRID - round(width * rows * GRID / height, 7).__floor__()) // 2
        whole = whole[:, :, padding : columns * GRID - padding]
    times = math.sqrt(whole.shape[1] * whole.shape[2] / (4 * GRID**2))
    if times > 1.1:
        size = [int(whole.shape[1] // times), int(whole.shape[2] // times)]
        whole = functional.interpolate(whole[None], size, mode="bilinear")[0]
    newline = model.model.image_newline[:, None, None].expand(-1, whole.shape[1], 1)
    return torch.cat([base, torch.cat([whole, newline], dim=2).flatten(1).T])


@pytest.mark.parametrize("size", [(SIDE, SIDE), (50, 20), (70, 65), (170, 150), (100, 190)])
def test_anyres_does_what_the_reference_does(build, size):
    model, processor = load_model(build("siglip", "anyres")).eval(), load_processor(build("siglip", "anyres"))
    inputs = processor(text=["<image>"], images=[picture(*size)], return_tensors="pt")
    found = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output[0]
    expected = reference_features(model, processor, picture(*size))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_pictures_of_one_turn_are_not_tiled(build):
    """As in the reference, and in stock LLaVA-OneVision: each is one square and a newline."""
    processor = load_processor(build("siglip", "anyres"))
    inputs = processor(text=["<image><image>"], images=[[picture(50, 20), picture(32, 32)]], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * (GRID**2 + 1)


@pytest.mark.parametrize("grid", ["anyres", "single"])
def test_text_and_settings_are_the_language_models(build, lm_dir, grid):
    model, language_model = load_model(build("siglip", grid)), AutoModelForCausalLM.from_pretrained(lm_dir)
    ids = torch.arange(12)[None]
    assert torch.equal(model(input_ids=ids).logits[..., : language_model.vocab_size], language_model(ids).logits)
    kept = ("eos_token_id", "repetition_penalty")
    assert all(
        getattr(model.generation_config, name) == getattr(language_model.generation_config, name) for name in kept
    )


def test_auto_processor_loads_it_without_torchvision(build):
    processor = AutoProcessor.from_pretrained(build("siglip", "single"))
    inputs = processor(text=["<image>"], images=[picture(20, 20)])
    assert len(inputs["input_ids"][0]) == GRID**2


def test_a_crop_would_lose_what_is_asked_about(build):
    processor = load_processor(build("clip", "single"))
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (0, 0, 10, 30))
    assert processor.image_processor(image)["pixel_values"][0].max() > 1


SMOLLM = (  # these three take strings alone; the first two write a system prompt where none is given
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    '    {%- elif message.role == "assistant" %}\n'
    "        {{- '<|im_start|>' + message.role }}\n        {%- if message.content %}\n"
    "            {{- '\\n' + message.content }}\n        {%- endif %}\n        {{- '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' %}"
    "{% if loop.index0 == 0 %}{% set content = 'BEGIN ' + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
MACRO = (  # a template that reads `messages` from within a macro
    "{% macro last() %}{{ messages[-1]['content'] }}{% endmacro %}"
    "{% for message in messages[:-1] %}{{ message['content'] }}<|im_end|>{% endfor %}{{ last() }}<|im_end|>"
    "{% if add_generation_prompt %}answer:{% endif %}"
)
IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "What is it?"}


def turn(content, role="user"):
    return {"role": role, "content": content}


CONVERSATIONS = [
    ([turn([IMAGE, TEXT])], [turn("<image>\nWhat is it?")]),
    ([turn([IMAGE, IMAGE, {"type": "text", "text": "\nBoth?"}])], [turn("<image><image>\nBoth?")]),
    ([turn([TEXT, IMAGE, {"type": "text", "text": " And?"}])], [turn("What is it?<image> And?")]),
    ([turn([TEXT]), turn([TEXT], "assistant")], [turn("What is it?"), turn("What is it?", "assistant")]),
    ([turn([TEXT], "system"), turn([IMAGE, TEXT])], [turn("What is it?", "system"), turn("<image>\nWhat is it?")]),
    ([turn("as a string")], [turn("as a string")]),
]


@pytest.mark.parametrize("template", [SMOLLM, QWEN, LLAMA, MACRO, TEXT_TEMPLATE])
def test_the_language_models_template_takes_pictures(lm_dir, tower_dirs, tmp_path, template):
    """Its text is what the language model's own template writes for the same turns in words."""
    changed = change_lm(lm_dir, tmp_path / "lm", template)
    _, processor = assemble(changed, tower_dirs["siglip"], "single")
    own = AutoTokenizer.from_pretrained(changed)
    for parts, words in CONVERSATIONS:
        for prompt in (False, True):
            found = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=prompt)
            assert found == own.apply_chat_template(words, tokenize=False, add_generation_prompt=prompt)
    with pytest.raises(Exception, match="a part of type 'audio' cannot be used"):
        processor.apply_chat_template([turn([{"type": "audio"}])], tokenize=False)


def test_a_new_projector_speaks_as_loudly_as_the_embeddings(build, lm_dir, tower_dirs):
    first, again, other = (assemble(lm_dir, tower_dirs["siglip"], "anyres", seed=seed)[0] for seed in (0, 0, 1))
    name = "multi_modal_projector.linear_1.weight"
    weights = [model.model.state_dict()[name] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    pixels = torch.randn(2, 3, SIDE, SIDE)
    features = first.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    image, newline, text = (
        value.square().mean().sqrt()
        for value in (
            first.model.multi_modal_projector(features),
            first.model.image_newline,
            first.get_input_embeddings().weight,
        )
    )
    torch.testing.assert_close(image, text, rtol=0.2, atol=0)
    torch.testing.assert_close(newline, text, rtol=0.5, atol=0)


def test_an_aligned_projector_is_taken_over(build, lm_dir, tower_dirs):
    """The reference aligns on single pictures and goes on with tiles."""
    aligned, _ = assemble(lm_dir, tower_dirs["clip"], "single", seed=7)
    other, _ = assemble(lm_dir, tower_dirs["clip"], "anyres", projector=build("clip", "single"))
    expected = load_model(build("clip", "single")).model.multi_modal_projector.state_dict()
    for name, value in other.model.multi_modal_projector.state_dict().items():
        assert torch.equal(value, expected[name])
        assert not torch.equal(value, aligned.model.multi_modal_projector.state_dict()[name])


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_wider_type_rounds_nothing(lm_dir, tower_dirs, tmp_path, dtype, expected):
    AutoModelForCausalLM.from_pretrained(lm_dir, dtype=torch.bfloat16).save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(lm_dir).save_pretrained(tmp_path / "lm")
    save_checkpoint(*assemble(str(tmp_path / "lm"), tower_dirs["siglip"], dtype=dtype), str(tmp_path / "out"))
    assert {parameter.dtype for parameter in load_model(str(tmp_path / "out")).parameters()} == {expected}


def test_a_full_matrix_gets_a_row(lm_dir, tower_dirs, tmp_path, caplog):
    """The mean of the others, for the image token; the mask token comes behind it at translation."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lm_dir), AutoTokenizer.from_pretrained(lm_dir)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    caplog.set_level("INFO", "diffusionvl")
    assembled, processor = assemble(str(tmp_path), tower_dirs["siglip"], "single")
    ids = processor.tokenizer.convert_tokens_to_ids("<image>")
    rows = assembled.get_input_embeddings().weight
    assert ids == assembled.config.image_token_id == len(tokenizer) == len(rows) - 1
    torch.testing.assert_close(rows[ids], model.get_input_embeddings().weight.mean(0))
    assert "one row added" in caplog.text


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
    if kind in ("no template", "template of one's own"):
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
        ("template of one's own", "writes 'hello' for an image"),
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


def train(capsys, records, model, out, *settings):
    """Trains two steps; gives the parts of the model that moved."""
    common = ("--max_steps", "2", "--save_strategy", "no", "--learning_rate", "1e-2", "--warmup_steps", "0")
    argv = ("--model", str(model), "--output_dir", str(out), "--train_records", str(records), *common, *settings)
    code, _, err = run(capsys, "train", *argv, "--per_device_train_batch_size", "3")
    assert code == 0, err
    before, after = (load_model(str(folder), torch.float32) for folder in (model, out))
    unchanged = before.state_dict()
    changed = {name for name, value in after.named_parameters() if not torch.equal(value, unchanged[name])}
    return {Parts(after).of(name) for name in changed}


def write_records(path, pictures):
    """A picture in a turn, a picture of another shape, two, and none."""
    with path.open("w") as file:
        for paths in (pictures[:1], pictures[1:2], pictures[1:], []):
            turns = [turn([*[IMAGE] * len(paths), TEXT]), turn("red", "assistant")]
            file.write(json.dumps({"images": paths, "messages": turns}) + "\n")
    return path


@pytest.mark.parametrize(("tower", "grid"), [("siglip", "anyres"), ("clip", "single")])
def test_align_translate_train_infer(build, pictures, tmp_path, capsys, tower, grid):
    """The whole journey by commands."""
    records = write_records(tmp_path / "records.jsonl", pictures)
    base, aligned = build(tower, grid), tmp_path / "aligned"
    assert train(capsys, records, base, aligned, "--objective", "ar", "--train_modules", "projector") == {"projector"}
    assert train(capsys, records, aligned, tmp_path / "ar", "--objective", "ar") == set(PARTS)
    init = tmp_path / "init"
    assert run(capsys, "translate", str(aligned), "--out", str(init), "--block-size", "4")[0] == 0
    assert train(capsys, records, init, tmp_path / "model") == set(PARTS)
    argv = ("--model", str(tmp_path / "model"), "--prompt", QUESTION, "--device", "cpu")
    for paths in (pictures[1:2], pictures[:2]):
        images = [word for path in paths for word in ("--image", path)]
        code, out, err = run(capsys, "infer", *argv, *images, "--json", "--max-new-tokens", "6")
        assert code == 0, err
        assert json.loads(out)["tokens"] > 0


def test_a_batch_of_unlike_pictures_decodes_as_each_alone(build, pictures, tmp_path, capsys):
    run(capsys, "translate", build("siglip", "anyres"), "--out", str(tmp_path), "--block-size", "4")
    model, processor = load_model(str(tmp_path)).eval(), load_processor(str(tmp_path))
    asked = [(QUESTION, path) for path in pictures]
    together = model.generate(**prompts(processor, *asked), max_new_tokens=6)[:, -6:]
    for row, question in zip(together, asked, strict=True):
        assert torch.equal(model.generate(**prompts(processor, question), max_new_tokens=6)[0, -6:], row)


def test_two_processes_train_as_one(build, pictures, tmp_path):
    """Nothing reads the last norm of the tower, and one of the processes has a batch without a picture."""
    records = write_records(tmp_path / "records.jsonl", pictures)
    argv = [
        "--model",
        build("siglip", "anyres"),
        "--train_records",
        str(records),
        "--objective",
        "ar",
        "--max_steps",
        "3",
    ]
    argv += ["--global_batch_size", "2", "--per_device_train_batch_size", "1", "--gradient_checkpointing", "yes"]
    argv += ["--save_strategy", "no", "--logging_steps", "1", "--warmup_steps", "0", "--learning_rate", "1e-2"]
    found = []
    for size in (1, 2):
        out = tmp_path / str(size)
        assert processes.run(processes.train, [*argv, "--output_dir", str(out)], world_size=size) == [0] * size
        found.append(losses(out))
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], rel=1e-4)
