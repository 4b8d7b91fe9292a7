"""The trial of a base can fail: wrong keys show in long rows, noise and fp32; and it leaves the model as it was."""

import pytest
import torch
import transformers

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.modeling.families import auto_class
from diffusionvl.translation import trial
from diffusionvl.translation.trial import check_model, exact

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "num_key_value_heads": 2}


def wrapped(config):
    """A translated model with random weights."""
    torch.manual_seed(0)
    config.initializer_range = 0.3
    base = auto_class(config).from_config(config)
    return DiffusionVLForConditionalGeneration(DiffusionVLConfig(config, mask_token_id=63), base).eval()


def test_a_base_that_keeps_keys_of_its_own_choice_is_refused():
    """Doge drops keys in rows that are longer than `keep_window_size`; in shorter ones it does as the mask says."""
    with pytest.raises(ValueError, match="'doge' cannot be translated"):
        check_model(wrapped(transformers.DogeConfig(**SIZES, keep_window_size=40)), "some/base")


@pytest.mark.parametrize("name", ["Qwen2", "Mistral", "StableLm", "Gemma2", "GptOss"])
@pytest.mark.parametrize("memory", [trial.MEMORY, 0])
def test_a_model_is_as_it_was_afterwards(name, memory, monkeypatch):
    monkeypatch.setattr(trial, "MEMORY", memory)
    config_class = getattr(transformers, f"{name}Config")
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8} if name == "GptOss" else {}
    window = {"sliding_window": 2048} if name in ("Mistral", "Gemma2", "GptOss") else {}
    model = wrapped(config_class(**SIZES, **experts, **window)).to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, windows = model.base.config.to_dict(), dict(model.windows)
    with exact(model):
        assert len(model.base.get_decoder().layers) == (4 if memory == 0 else 6)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    check_model(model, "some/base")
    assert len(model.base.get_decoder().layers) == 6
    assert model.state_dict().keys() == before.keys()
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.base.config.to_dict(), model.windows) == (settings, windows)


def test_rows_are_longer_than_what_the_config_names():
    assert trial._row_length(wrapped(transformers.DogeConfig(**SIZES, max_position_embeddings=4096))) == 2048 + 24
    assert trial._row_length(wrapped(transformers.Qwen2Config(**SIZES))) == 24


def test_tokens_that_are_never_drawn_hide_no_error():
    """Chameleon writes the least number there is for image tokens, next to which every difference is nothing."""
    expected = torch.randn(3, 8)
    expected[:, 5:] = torch.finfo(torch.float32).min
    found = expected.clone()
    assert trial._error(found, expected) == 0
    found[1, 2] += 1
    assert trial._error(found, expected) > 0.1
    found[1, 2] = torch.nan
    assert trial._error(found, expected) == torch.inf
    found[1, 2], found[0, 6] = expected[1, 2], 0.0
    assert trial._error(found, expected) > 1
