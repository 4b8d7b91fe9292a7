"""Assembly: a stock checkpoint, a language model and a vision tower as they were; its pictures and its template."""

import math

import pytest
import torch
from assemblies import IMAGE, TEXT, change_lm, turn
from helpers import build_picture
from PIL import Image
from tiny_families import TEXT_TEMPLATE
from tiny_towers import PATCH, SIDE
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    SiglipVisionModel,
)

from diffusionvl.assembly import assemble
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_model, load_processor

GRID = SIDE // PATCH  # patches in a row of one tile


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
    """The mean of the others, for the image token; the mask token follows at translation."""
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
