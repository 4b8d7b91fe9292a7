"""The reference's checkpoints: the same weights and ids as ours, there and back, and an error for what is none.

The folders are synthetic, with the names, files and settings of the released ones and tiny sizes.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_values import EOS_ID, GENERATE, MASK_ID, MODEL, PAD_ID, tensors
from helpers import load_model, run
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.conversion.hustvl import convert_hustvl, convert_to_reference

ROWS = 320
TOKENS = {
    "<|image_pad|>": 310,
    "<|video_pad|>": 311,
    "<|vision_start|>": 312,
    "<|vision_end|>": 313,
    "<|im_start|>": 314,
    "<|endoftext|>": PAD_ID,
    "<|im_end|>": EOS_ID,
}
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
TEXT = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "vocab_size": ROWS,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}
COMMON = {
    "enable_bd3lm": True,
    "bd3lm_block_size": 8,
    "bd3lm_antithetic_sampling": True,
    "bd3lm_sampling_eps_min": 1e-3,
    "bd3lm_sampling_eps_max": 1.0,
    "bd3lm_block_aligned_eos": True,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_tower_lr": 2e-6,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "model_max_length": 8192,
    "tokenizer_model_max_length": 8192,
    "tokenizer_padding_side": "right",
}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SIGLIP |= {"image_size": 28, "patch_size": 14}
GRID = [[28, 28], [28, 56], [56, 28], [56, 56]]


def save_tokenizer(folder):
    """Ids of the golden files; words that are not in it are one token."""
    vocabulary = {f"w{index}": index for index in range(ROWS - 2)}
    vocabulary = {word: index for word, index in vocabulary.items() if index not in TOKENS.values()} | TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": [*TOKENS][:5]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", **special).save_pretrained(folder)


def save_reference(folder, config, weights):
    """A checkpoint in two files."""
    folder.mkdir()
    save_tokenizer(folder)
    first = dict([*weights.items()][:10])
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in weights.keys() - first}, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def qwen_config(tied):
    given = json.loads(Path(MODEL, "config.json").read_text())
    text = {**TEXT, "rope_scaling": given["text_config"]["rope_scaling"], "tie_word_embeddings": tied}
    return {
        **COMMON,
        "architectures": ["LlavaDiffusionVLQwenVL"],
        "model_type": "diffusionvl_qwenvl",
        "mm_projector_type": "qwen_merger",
        "mm_vision_tower": "models/qwen2_5_vl",
        "mm_hidden_size": 32,
        "image_aspect_ratio": "pad",
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
        "vision_config": given["vision_config"],
        "text_config": {"model_type": "qwen2_5_vl_text", **text},
        **text,
        "image_token_id": None,  # the flattened text config writes over them
        "video_token_id": None,
        "torch_dtype": "float32",
    }


def qwen_weights(tied):
    """The golden model's weights by the names of a release."""
    weights = {}
    for name, value in load_file(f"{MODEL}/model.safetensors").items():
        name = name.replace("visual.merger.", "model.mm_projector.merger.")
        weights[name.replace("visual.", "model.vision_tower.vision_tower.")] = value
    if tied:
        del weights["lm_head.weight"]
    return weights


def siglip_config():
    return {
        **COMMON,
        **TEXT,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "model_type": "diffusionvl_qwen",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "models/siglip2",
        "mm_hidden_size": 32,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": GRID,
        "vision_config": SIGLIP,
        "torch_dtype": "bfloat16",
    }


def siglip_weights():
    """Random weights by the names of DiffusionVL-Qwen2.5-7B: a tower of three layers, its last one left out."""
    tower, width, inner = "model.vision_tower.vision_tower.vision_model.", 32, 48
    sizes = {f"{tower}embeddings.patch_embedding.weight": (width, 3, 14, 14), f"{tower}post_layernorm.weight": (width,)}
    sizes |= {f"{tower}embeddings.patch_embedding.bias": (width,), f"{tower}post_layernorm.bias": (width,)}
    sizes[f"{tower}embeddings.position_embedding.weight"] = (4, width)
    for layer in range(2):
        block = f"{tower}encoder.layers.{layer}."
        linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, size in linear.items():
            sizes |= {f"{block}{name}.weight": size, f"{block}{name}.bias": size[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            sizes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    sizes |= {"model.mm_projector.0.weight": (64, width), "model.mm_projector.0.bias": (64,)}
    sizes |= {"model.mm_projector.2.weight": (64, 64), "model.mm_projector.2.bias": (64,), "model.image_newline": (64,)}
    generator = torch.Generator().manual_seed(0)
    weights = {name: (torch.randn(size, generator=generator) * 0.2) for name, size in sizes.items()}
    weights |= {name: value for name, value in qwen_weights(False).items() if name.startswith(("model.l", "lm_head"))}
    weights |= {name: value for name, value in qwen_weights(False).items() if name.startswith(("model.e", "model.n"))}
    return {name: value.bfloat16() for name, value in weights.items()}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Folders of the three releases."""
    folder = tmp_path_factory.mktemp("references")
    return {
        "3B": save_reference(folder / "3B", qwen_config(tied=True), qwen_weights(tied=True)),
        "7B": save_reference(folder / "7B", qwen_config(tied=False), qwen_weights(tied=False)),
        "siglip": save_reference(folder / "siglip", siglip_config(), siglip_weights()),
    }


def read_all(folder):
    weights = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    return weights


def convert(capsys, *argv):
    code, out, err = run(capsys, "convert", "hustvl", *map(str, argv), "--mask-token-id", str(MASK_ID))
    assert code == 0, err
    assert out.splitlines()[-1] == f"wrote {argv[-1]}"


@pytest.mark.parametrize("name", ["3B", "7B", "siglip"])
def test_there_and_back_bit_for_bit(references, tmp_path, capsys, name):
    convert(capsys, references[name], tmp_path / "ours")
    convert(capsys, "--to-reference", tmp_path / "ours", tmp_path / "back")
    (tmp_path / "parts").mkdir()
    convert_to_reference(str(tmp_path / "ours"), str(tmp_path / "parts"), MASK_ID, max_shard_size="200KB")
    assert len([*(tmp_path / "parts").glob("model-*.safetensors")]) > 1
    source = read_all(references[name])
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == source.keys()
    for back in (read_all(tmp_path / "back"), read_all(tmp_path / "parts")):
        assert source.keys() == back.keys()
        assert all(torch.equal(value, back[key]) and value.dtype == back[key].dtype for key, value in source.items())
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (references[name], tmp_path / "back")
    )
    assert {key: after.get(key) for key in before} == before
    tokenizers = [
        json.loads((folder / "tokenizer.json").read_text()) for folder in (references[name], tmp_path / "back")
    ]
    assert tokenizers[0]["model"] == tokenizers[1]["model"]
    assert tokenizers[0]["added_tokens"] == tokenizers[1]["added_tokens"]


@pytest.mark.parametrize("name", GENERATE)
def test_a_converted_checkpoint_decodes_the_references_ids(references, tmp_path, capsys, name):
    """The golden ids are those of the reference's code with these weights."""
    convert(capsys, references["7B"], tmp_path / "ours")
    golden, case = tensors("generate", name), GENERATE[name]
    assert case["block_size"] == COMMON["bd3lm_block_size"]
    answer = load_model(tmp_path / "ours").generate(
        **{key: golden[key] for key in ("input_ids", "pixel_values", "image_grid_thw")},
        max_new_tokens=case["gen_length"],
        denoising_steps=case["steps"],
        remasking=case["strategy"],
        confidence_threshold=case.get("confidence_threshold", 0.85),
    )
    expected = golden["output_ids"][0].tolist()
    if EOS_ID in expected:
        expected = expected[: expected.index(EOS_ID) + 1]
    assert answer[0, golden["input_ids"].shape[1] :].tolist() == expected


def test_the_stock_model_computes_the_same(references):
    """The source's weights put into the stock model by hand: the golden one, and a LLaVA-OneVision."""
    ids = torch.randint(0, 300, (1, 13))
    golden = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    ours = convert_hustvl(str(references["7B"]), MASK_ID)[0].base
    assert torch.equal(ours(ids).logits, golden(ids).logits)
    model, processor = convert_hustvl(str(references["siglip"]), MASK_ID)
    stock = AutoModelForImageTextToText.from_config(model.base.config, dtype=torch.bfloat16).eval()
    parts = stock.model
    for module, beginning in (
        (parts.vision_tower, "model.vision_tower.vision_tower.vision_model."),
        (parts.multi_modal_projector.linear_1, "model.mm_projector.0."),
        (parts.multi_modal_projector.linear_2, "model.mm_projector.2."),
        (parts.language_model.embed_tokens, "model.embed_tokens."),
        (parts.language_model.layers, "model.layers."),
        (parts.language_model.norm, "model.norm."),
        (stock.lm_head, "lm_head."),
    ):
        own = {key.removeprefix(beginning): v for key, v in siglip_weights().items() if key.startswith(beginning)}
        module.load_state_dict(own)
    parts.image_newline.data = siglip_weights()["model.image_newline"]
    picture = Image.new("RGB", (50, 20), (200, 30, 90))
    inputs = processor(text=["w1\n<|image_pad|>\nw2"], images=[picture], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model.base(**inputs).logits, stock(**inputs).logits)


@pytest.mark.parametrize("name", ["3B", "siglip"])
def test_it_is_set_as_the_reference_is(references, tmp_path, capsys, name):
    convert(capsys, references[name], tmp_path / "ours")
    model, processor = load_model(tmp_path / "ours"), load_processor(str(tmp_path / "ours"))
    config = model.config
    assert (config.position_mode, config.block_origin, config.block_size) == ("sequential", "absolute", 8)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (MASK_ID, EOS_ID, PAD_ID)
    assert model.generation_config.eos_token_ids == [EOS_ID]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    turn = "<|im_start|>user\n<|image_pad|> <|image_pad|>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert text == SYSTEM + turn
    pictures = [Image.new("RGB", size) for size in ((84, 56), (30, 30))]
    inputs = processor(text=[text], images=[pictures], return_tensors="pt")
    assert not torch.isin(inputs["input_ids"], torch.tensor([312, 313])).any()
    if name == "3B":
        assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]]
        assert "lm_head.weight" not in read_all(tmp_path / "ours")
    answer = model.generate(**inputs, max_new_tokens=9)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    assert "hustvl/DiffusionVL" in (tmp_path / "ours/README.md").read_text()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("enable_bd3lm", None, r"lacks \['enable_bd3lm'\]"),
        ("enable_bd3lm", False, "enable_bd3lm is False"),
        ("mm_projector_type", "linear", "mm_projector_type is 'linear'"),
        ("text_config", "qwen", "text_config is 'qwen', not a config"),
        ("max_pixels", 5, "min_pixels 3136 and max_pixels 5 are not numbers"),
        ("vision_config", None, r"lacks \['vision_config'\]"),
        ("tie_word_embeddings", True, r"weights of no DiffusionVL, such as \['lm_head.weight'\]"),
        ("text_config", {**TEXT, "num_hidden_layers": 4}, "lacks weights, such as .*model.layers.3.*12 in all"),
        (
            "text_config",
            {**TEXT, "num_hidden_layers": 2},
            "weights of no DiffusionVL, such as .*model.layers.2.*12 in all",
        ),
        ("text_config", {**TEXT, "rope_theta": None}, r"lacks \['rope_theta'\]"),
        ("text_config", {**TEXT, "intermediate_size": "96"}, r"(?s)config\.json: .*'intermediate_size' expected int"),
        ("text_config", {**TEXT, "intermediate_size": 96}, r"has shape \[128, 64\].*wants \[96, 64\]"),
    ],
)
def test_what_is_no_checkpoint_of_the_reference(references, tmp_path, capsys, name, value, reason):
    shutil.copytree(references["7B"], tmp_path / "changed")
    settings = json.loads((tmp_path / "changed/config.json").read_text())
    (tmp_path / "changed/config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(ValueError, match=reason):
        convert_hustvl(str(tmp_path / "changed"), MASK_ID)
    code, out, err = run(capsys, "convert", "hustvl", str(tmp_path / "changed"), str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("file", "reason"),
    [("config.json", "cannot be read"), ("*.safetensors", "holds no"), ("tokenizer*.json", "holds no tokenizer")],
)
def test_a_missing_file(references, tmp_path, file, reason):
    shutil.copytree(references["siglip"], tmp_path / "changed")
    for path in (tmp_path / "changed").glob(file):
        path.unlink()
    with pytest.raises(ValueError, match=reason):
        convert_hustvl(str(tmp_path / "changed"), MASK_ID)


def test_weights_of_two_types(references, tmp_path):
    shutil.copytree(references["3B"], tmp_path / "changed")
    path = tmp_path / "changed/model-00001-of-00002.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"several types.*float16"):
        convert_hustvl(str(tmp_path / "changed"), MASK_ID)


def test_the_reference_would_decode_it_otherwise(references, translated_dir, base_dir, tmp_path, capsys):
    """The mask token is a constant in the reference's code."""
    convert(capsys, references["3B"], tmp_path / "ours")
    for index, (argv, reason) in enumerate(
        (
            (("hustvl", translated_dir, "--to-reference"), "'block_origin': 'response'"),
            (("hustvl", base_dir, "--to-reference"), "model of type 'qwen2_5_vl'"),
            (("hustvl", str(tmp_path / "ours"), "--to-reference"), f"'mask_token_id': {MASK_ID}"),
            (("hustvl", str(references["3B"])), "the mask token 151671 has no row among its 320"),
            (("llada", str(references["3B"]), "--to-reference"), "leave them out for llada"),
        )
    ):
        code, out, err = run(capsys, "convert", *argv, str(tmp_path / f"out{index}"))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert reason in err
