"""LLaDA's checkpoints as a Llama: the same numbers as its own block, and an error for what is none."""

import json
import shutil

import pytest
import torch
from helpers import run
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from diffusionvl.checkpoints.loading import load_model
from diffusionvl.conversion.llada import convert_llada
from diffusionvl.modeling.attention import as_attention_mask
from diffusionvl.translation.translate import translate
from studies.quickstart.base import build_tokenizer

# As on the hub: it opens an answer behind every conversation, and trims what is said.
TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
SPECIAL = ["<|mdm_mask|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
D_MODEL, HEADS, KV_HEADS, LAYERS, MLP, THETA, EPS = 32, 4, 2, 3, 48, 500.0, 1e-5


def tiny_tokenizer():
    tokenizer = build_tokenizer(["what is it red blue one two"])
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL, "eos_token": "<|endoftext|>"})
    tokenizer.bos_token, tokenizer.chat_template = "<|startoftext|>", TEMPLATE
    return tokenizer


def tiny_weights(rows):
    """Weights by LLaDA's names."""
    sizes = {f"blocks.{layer}.{name}": size for layer in range(LAYERS) for name, size in block_sizes().items()}
    sizes |= {"wte": (rows, D_MODEL), "ff_out": (rows, D_MODEL), "ln_f": (D_MODEL,)}
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.transformer.{name}.weight": torch.randn(size, generator=generator) * 0.3 + (len(size) == 1)
        for name, size in sizes.items()
    }


def block_sizes():
    keys = D_MODEL * KV_HEADS // HEADS
    return {
        "q_proj": (D_MODEL, D_MODEL),
        "k_proj": (keys, D_MODEL),
        "v_proj": (keys, D_MODEL),
        "attn_out": (D_MODEL, D_MODEL),
        "ff_proj": (MLP, D_MODEL),
        "up_proj": (MLP, D_MODEL),
        "ff_out": (D_MODEL, MLP),
        "attn_norm": (D_MODEL,),
        "ff_norm": (D_MODEL,),
    }


@pytest.fixture(scope="session")
def llada_dir(tmp_path_factory):
    """Folder of a tiny checkpoint with the files, names and settings of LLaDA-8B-Instruct."""
    folder = tmp_path_factory.mktemp("llada")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) + 5
    weights = tiny_weights(rows)
    first = dict(list(weights.items())[:10])
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in weights.keys() - first}, folder / "model-00002-of-00002.safetensors")
    token = tokenizer.convert_tokens_to_ids
    config = {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_layer_norm": False,
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": D_MODEL,
        "embedding_size": rows,
        "eos_token_id": token("<|endoftext|>"),
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "mask_token_id": token("<|mdm_mask|>"),
        "max_sequence_length": 512,
        "mlp_hidden_size": MLP,
        "mlp_ratio": 4,
        "model_type": "llada",
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "n_layers": LAYERS,
        "pad_token_id": token("<|endoftext|>"),
        "rms_norm_eps": EPS,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": THETA,
        "scale_logits": False,
        "vocab_size": rows,
        "weight_tying": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def rotate(x):
    """Rotary positions of [heads, tokens, size], each pair (i, i + size / 2) as a complex number."""
    half = x.shape[-1] // 2
    speed = THETA ** (-torch.arange(half) / half)
    turns = torch.polar(torch.ones(x.shape[1], half), torch.arange(x.shape[1])[:, None] * speed)
    turned = torch.complex(x[..., :half], x[..., half:]) * turns
    return torch.cat([turned.real, turned.imag], dim=-1)


def llada_logits(weights, ids):
    """LLaDA by its paper: every token sees every other."""

    def linear(x, name):
        return x @ weights[f"model.transformer.{name}.weight"].T

    def heads(x, count):
        return x.view(len(ids), count, -1).transpose(0, 1)

    x = weights["model.transformer.wte.weight"][ids]
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        seen = norm(x, weights[f"model.transformer.{block}attn_norm.weight"])
        query, key = (heads(linear(seen, block + name), n) for name, n in (("q_proj", HEADS), ("k_proj", KV_HEADS)))
        value = heads(linear(seen, block + "v_proj"), KV_HEADS).repeat_interleave(HEADS // KV_HEADS, dim=0)
        key = rotate(key).repeat_interleave(HEADS // KV_HEADS, dim=0)
        scores = rotate(query) @ key.transpose(1, 2) / (D_MODEL // HEADS) ** 0.5
        x = x + linear((scores.softmax(-1) @ value).transpose(0, 1).flatten(1), block + "attn_out")
        seen = norm(x, weights[f"model.transformer.{block}ff_norm.weight"])
        gate = functional.silu(linear(seen, block + "ff_proj"))
        x = x + linear(gate * linear(seen, block + "up_proj"), block + "ff_out")
    return linear(norm(x, weights["model.transformer.ln_f.weight"]), "ff_out")


def test_the_llama_computes_what_llada_does(llada_dir, tmp_path, capsys):
    code, out, err = run(capsys, "convert", "llada", str(llada_dir), str(tmp_path / "llama"))
    assert code == 0, err
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'llama'}"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    weights = {}
    for path in llada_dir.glob("*.safetensors"):
        weights |= load_file(path)
    ids = torch.randint(0, model.config.vocab_size, (13,))
    everything = as_attention_mask(torch.ones(1, 1, 13, 13, dtype=torch.bool), "sdpa", model.dtype)
    with torch.no_grad():
        found = model(input_ids=ids[None], attention_mask=everything, position_ids=torch.arange(13)[None]).logits[0]
    torch.testing.assert_close(found, llada_logits(weights, ids), rtol=1e-4, atol=1e-4)


def test_the_tokenizer_says_what_llada_leaves_to_its_users(llada_dir, tmp_path):
    model, processor = convert_llada(str(llada_dir))
    tokenizer = processor.tokenizer
    assert (tokenizer.mask_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|mdm_mask|>",
        "<|eot_id|>",
        "<|endoftext|>",
    )
    assert set(model.generation_config.eos_token_id) == set(
        tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|endoftext|>"])
    )
    settings = json.loads((llada_dir / "config.json").read_text())
    shutil.copytree(llada_dir, tmp_path / "endless")
    (tmp_path / "endless/config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    assert convert_llada(str(tmp_path / "endless"))[0].generation_config.eos_token_id == [tokenizer.eos_token_id]
    messages = [{"role": "user", "content": "what is it"}]
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opened == tiny_tokenizer().apply_chat_template(messages, tokenize=False)
    closed = tokenizer.apply_chat_template(messages, tokenize=False)
    assert opened == closed + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_the_mask_token_stays_at_translation(llada_dir, tmp_path, capsys):
    run(capsys, "convert", "llada", str(llada_dir), str(tmp_path / "llama"))
    model, processor = translate(str(tmp_path / "llama"))
    settings = json.loads((llada_dir / "config.json").read_text())
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id == settings["mask_token_id"]


def test_it_takes_the_road_of_any_language_model(llada_dir, tower_dirs, pictures, tmp_path, capsys):
    """Aligned by full diffusion, one block that holds a whole answer; then finetuned in blocks; then asked."""
    record = {"image": pictures[1], "conversations": [{"from": "human", "value": "<image>\nwhat is it"}]}
    record["conversations"].append({"from": "gpt", "value": "red"})
    (tmp_path / "records.json").write_text(json.dumps([record] * 2))
    common = ("--train_records", str(tmp_path / "records.json"), "--max_steps", "1", "--save_strategy", "no")
    projector = ("--train_modules", "projector")
    blocks = ("--clean-attention", "block")  # it was never an AR model
    parts = ("--lm", str(tmp_path / "llama"), "--vision", tower_dirs["siglip"])
    answer = ("--image", pictures[1], "--prompt", "what is it", "--device", "cpu", "--json", "--max-new-tokens", "4")
    for argv in (
        ("convert", "llada", str(llada_dir), str(tmp_path / "llama")),
        ("assemble", *parts, "--image-grid", "single", "--out", str(tmp_path / "base")),
        ("translate", str(tmp_path / "base"), "--out", str(tmp_path / "full"), "--block-size", "64", *blocks),
        ("train", "--model", str(tmp_path / "full"), "--output_dir", str(tmp_path / "aligned"), *common, *projector),
        ("assemble", *parts, "--projector", str(tmp_path / "aligned"), "--out", str(tmp_path / "tiles")),
        ("translate", str(tmp_path / "tiles"), "--out", str(tmp_path / "init"), "--block-size", "4", *blocks),
        ("train", "--model", str(tmp_path / "init"), "--output_dir", str(tmp_path / "model"), *common),
        ("infer", "--model", str(tmp_path / "model"), *answer),
    ):
        code, out, err = run(capsys, *argv)
        assert code == 0, err
    assert json.loads(out)["tokens"] > 0
    aligned, tiles = (load_model(str(tmp_path / name)) for name in ("aligned", "init"))
    own, taken = (model.base.model.multi_modal_projector.state_dict() for model in (aligned, tiles))
    assert all(torch.equal(taken[name], value) for name, value in own.items())
    assert tiles.config.mask_token_id == json.loads((llada_dir / "config.json").read_text())["mask_token_id"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model_type", "llama", "is not the config of a LLaDA"),
        ("n_layers", None, r"lacks \['n_layers'\]"),
        ("n_layers", "3", r"lacks \['n_layers'\], or they are not numbers"),
        ("n_heads", 5, r"(?s)config.json: cannot be a Llama's \(.*32.*5"),
        ("block_type", "sequential", "'block_type': 'sequential'.*which is.*'llama'"),
        ("include_qkv_bias", True, "'include_qkv_bias': True"),
        ("n_layers", LAYERS + 1, "lacks weights.*blocks.3.attn_norm.weight'.*9 in all"),
        ("n_layers", LAYERS - 1, "weights of no Llama.*blocks.2.attn_norm.weight'.*9 in all"),
        ("weight_tying", True, r"weights of no Llama.*'model.transformer.ff_out.weight'"),
        ("mlp_hidden_size", MLP + 1, r"ff_proj.weight' has shape \[48, 32\], its config.json wants \[49, 32\]"),
        ("mask_token_id", 10_000, "mask_token_id 10000, which the tokenizer does not know"),
    ],
)
def test_what_is_no_llada(llada_dir, tmp_path, capsys, name, value, reason):
    folder = tmp_path / "changed"
    shutil.copytree(llada_dir, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(ValueError, match=reason):
        convert_llada(str(folder))
    code, out, err = run(capsys, "convert", "llada", str(folder), str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("config.json", "cannot be read"),
        ("*.safetensors", "holds no .safetensors file"),
        ("tokenizer*.json", "holds no tokenizer"),
    ],
)
def test_a_missing_file(llada_dir, tmp_path, file, reason):
    folder = tmp_path / "changed"
    shutil.copytree(llada_dir, folder)
    for path in folder.glob(file):
        path.unlink()
    with pytest.raises(ValueError, match=reason):
        convert_llada(str(folder))


def test_weights_of_two_checkpoints_are_not_mixed(llada_dir, tmp_path):
    shutil.copytree(llada_dir, tmp_path / "changed")
    shutil.copy(llada_dir / "model-00001-of-00002.safetensors", tmp_path / "changed/model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: holds 'model\.transformer\..*as another file does"):
        convert_llada(str(tmp_path / "changed"))


def test_a_broken_file(llada_dir, tmp_path):
    shutil.copytree(llada_dir, tmp_path / "changed")
    (tmp_path / "changed/model-00002-of-00002.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: is broken"):
        convert_llada(str(tmp_path / "changed"))
