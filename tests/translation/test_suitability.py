"""Bases that cannot be translated are refused with the reason: by their config, or by what a few tokens show."""

import pytest
import torch
import transformers
from tiny_families import save_base
from transformers import AutoConfig

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration, cli
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.modeling import families
from diffusionvl.modeling.families import auto_class
from diffusionvl.translation.suitability import check_config
from diffusionvl.translation.translate import translate
from diffusionvl.translation.trial import check_model

STATE = "keeps a recurrent state"
CROSS = "by cross-attention"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Mamba", STATE),
        ("Rwkv", STATE),
        ("Jamba", STATE),
        ("RecurrentGemma", STATE),
        ("Qwen3Next", STATE),
        ("Qwen3_5", STATE),
        ("MiniMax", r"layers of the types \['linear_attention'\]"),
        ("Llama4Text", r"layers of the types \['chunked_attention'\]"),
        ("T5", "is an encoder-decoder"),
        ("Bart", "is an encoder-decoder"),
        ("Florence2", "is an encoder-decoder"),
        ("Whisper", "is an encoder-decoder"),
        ("Bert", "fills in tokens"),
        ("ModernBert", "fills in tokens"),
        ("Mllama", CROSS),
        ("Bloom", "takes no position_ids"),
        ("CLIP", "no causal language model"),
        ("DiffusionVL", "block-diffusion checkpoint already"),
    ],
)
def test_what_can_not_work_is_refused_by_its_config(name, reason):
    config_class = DiffusionVLConfig if name == "DiffusionVL" else getattr(transformers, f"{name}Config")
    with pytest.raises(ValueError, match=f"^some/base: .*cannot be translated: .*{reason}") as error:
        check_config(config_class(), "some/base")
    assert "\n" not in str(error.value)


def test_a_hybrid_inside_a_vision_language_model_is_refused():
    config = transformers.LlavaConfig(text_config=transformers.JambaConfig())
    with pytest.raises(ValueError, match=STATE):
        check_config(config, "some/base")


def test_the_reason_comes_before_the_weights(tmp_path, capsys):
    transformers.MambaConfig().save_pretrained(tmp_path / "base")  # without weights
    assert cli.main(["translate", str(tmp_path / "base"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert STATE in err


def wrapped(config):
    """A translated model with random weights."""
    config.initializer_range = 0.3
    base = auto_class(config).from_config(config)
    return DiffusionVLForConditionalGeneration(DiffusionVLConfig(config, mask_token_id=63), base).eval()


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # Looks back in a way of its own: its buffers hold a causal mask, which it joins with the given one.
        (
            transformers.GPTNeoConfig(
                vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
            ),
            "its layers (look back alone|see other tokens)",
        ),
        # Measures distances in the row, whatever the positions say.
        (
            transformers.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4),
            "its layers see other tokens, or at other distances",
        ),
        # Reads the mask as padding.
        (transformers.FalconConfig(**SIZES, alibi=True), "its forward fails on a row of clean and noisy tokens"),
        # Sees what is behind it.
        (transformers.BertConfig(**SIZES, intermediate_size=48), "its layers see other tokens, or at other distances"),
    ],
)
def test_what_does_not_do_as_the_mask_says_is_refused(config, reason):
    with pytest.raises(ValueError, match=f"^some/base: .*cannot be translated: {reason}"):
        check_model(wrapped(config), "some/base")


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
        transformers.FalconConfig(**SIZES, alibi=False),
        transformers.GptOssConfig(
            **SIZES,
            intermediate_size=48,
            head_dim=8,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=3,
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_families_that_do_are_taken(config, dtype):
    """Learned positions, many queries to a key, attention sinks beside a window: nothing here knows of them."""
    check_model(wrapped(config).to(dtype), "some/base")


def test_a_base_is_judged_by_rows_that_tokens_use():
    """The last rows of Qwen's embeddings belong to no token and are all the same: there, nothing tells tokens apart."""
    model = wrapped(transformers.Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=2))
    model.get_input_embeddings().weight.data[-16:] = 0
    check_model(model, "some/base")


def test_quantised_weights_are_refused():
    config = transformers.LlamaConfig(quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match=r"its weights are quantised \(awq\); give the model"):
        check_config(config, "some/base")


def test_a_picture_that_is_seen_in_another_way_is_refused(tmp_path, monkeypatch):
    """Gemma 3's tokens of a picture see one another, which nobody might know of a family that is not tested."""
    save_base("Gemma 3", str(tmp_path))
    monkeypatch.setattr(families, "WHOLE_IMAGE_FAMILIES", ())
    with pytest.raises(ValueError, match=r"'gemma3' cannot be translated: text sees a picture.*in another way"):
        translate(str(tmp_path))


def test_a_picture_that_the_template_leaves_out_is_refused(base_dir):
    template = "{% for m in messages %}{{ m['content'][-1]['text'] }}<|im_end|>{% endfor %}"
    with pytest.raises(ValueError, match="fails on a picture in front of a question"):
        translate(base_dir, block_origin="absolute", chat_template=template)


CONFIGURATION = """
from transformers import LlamaConfig

class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def with_own_code(tmp_path):
    """Folder of a Llama that says that its code is in the folder."""
    folder = tmp_path / "base"
    save_base("Llama", str(folder))
    (folder / "configuration_mine.py").write_text(CONFIGURATION)
    (folder / "modeling_mine.py").write_text(MODELING)
    config = AutoConfig.from_pretrained(folder)
    config.auto_map = {
        "AutoConfig": "configuration_mine.MineConfig",
        "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
    }
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "mine"'))
    return folder


def test_remote_code_runs_where_the_user_says_so(with_own_code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = str(tmp_path / "out")
    assert cli.main(["translate", str(with_own_code), "--out", out]) == 2
    err = capsys.readouterr().err
    assert "code of its own" in err
    assert "set trust_remote_code" in err
    assert err.count("\n") == 1
    assert cli.main(["translate", str(with_own_code), "--out", out, "--trust-remote-code"]) == 0
    assert {"configuration_mine.py", "modeling_mine.py"} <= {path.name for path in (tmp_path / "out").iterdir()}
    (with_own_code / "modeling_mine.py").unlink()  # the translation stands alone
    infer = ["infer", "--model", out, "--prompt", "why?", "--device", "cpu", "--json", "--max-new-tokens", "4"]
    assert cli.main([*infer, "--trust-remote-code"]) == 0


def test_code_beside_a_model_of_transformers_is_not_run(with_own_code, tmp_path):
    """Phi-3 and others carry such code from before transformers knew them."""
    path = with_own_code / "config.json"
    path.write_text(path.read_text().replace('"model_type": "mine"', '"model_type": "llama"'))
    (with_own_code / "modeling_mine.py").write_text("raise RuntimeError")
    assert type(translate(str(with_own_code))[0].base).__name__ == "LlamaForCausalLM"


def test_a_chat_template_may_be_given(tmp_path, capsys):
    save_base("Llama", str(tmp_path / "base"))
    template = (tmp_path / "base/chat_template.jinja").rename(tmp_path / "template.jinja")
    argv = ["translate", str(tmp_path / "base"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert "has no chat template; give one" in err
    assert err.count("\n") == 1
    assert cli.main([*argv, "--chat-template", str(tmp_path / "none.jinja")]) == 2
    assert "none.jinja" in capsys.readouterr().err
    assert cli.main([*argv, "--chat-template", str(template)]) == 0
    assert (tmp_path / "out/chat_template.jinja").read_text() == template.read_text()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] }}", r"writes \"\[\{'type'"),
        ("{{ 'user: ' + messages[0]['content'] }}", "cannot render a question and its answer: can only concatenate"),
        ("{{ 'hello' }}", "writes 'hello' for the question"),
    ],
)
def test_a_chat_template_that_loses_what_is_said(base_dir, template, reason):
    with pytest.raises(ValueError, match=f"^{base_dir}: the chat template {reason}.*as chat_template$"):
        translate(base_dir, chat_template=template)


def test_of_several_chat_templates_the_default_one_is_taken(tmp_path):
    save_base("Llama", str(tmp_path / "base"))
    (tmp_path / "base/chat_template.jinja").unlink()
    tokenizer = load_processor(str(tmp_path / "base")).tokenizer
    own = {"default": "{{ messages[-1]['content'] }}<|im_end|>", "tool_use": "{{ tools }}"}
    for templates in ({"one": "", "two": ""}, own):
        tokenizer.chat_template = templates
        tokenizer.save_pretrained(tmp_path / "base")
        if templates is not own:
            with pytest.raises(ValueError, match=r"the chat templates \['one', 'two'\] and no default one; give one"):
                translate(str(tmp_path / "base"))
    model, own_processor = translate(str(tmp_path / "base"), block_origin="absolute")
    save_checkpoint(model, own_processor, str(tmp_path / "out"))
    for processor in (own_processor, load_processor(str(tmp_path / "out"))):
        assert processor.apply_chat_template([{"role": "user", "content": "why?"}], tokenize=False) == "why?<|im_end|>"
        assert own.items() <= processor.chat_template.items()
