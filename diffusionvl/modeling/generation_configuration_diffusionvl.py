"""The config that holds a value for each decoding setting, and what a call makes of it."""

import copy
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig

from .errors import UserError
from .settings import SETTINGS

# Arguments of transformers' `generate` that have no meaning here, and why.
_IMPOSSIBLE = {
    "past_key_values": "each call fills a cache of its own; leave it out",
    "assistant_model": "a block-diffusion model drafts for itself; leave it out",
    "inputs_embeds": "a prompt is read as token ids; give input_ids",
}


class DiffusionVLGenerationConfig(GenerationConfig):
    """How answers are decoded: a value for each row of `SETTINGS`, which says what they mean. Unknown names are errors.

    `do_sample=False` stands for temperature 0, `do_sample=True` for temperature 1 where none above 0 is given.

    Raises:
        UserError: A name is unknown, or a value is outside its range.
    """

    def __init__(self, **kwargs: Any) -> None:
        for name, setting in SETTINGS.items():
            setattr(self, name, kwargs.pop(name, setting.default))
        for name in ("transformers_version", "_commit_hash", "_from_model_config"):  # notes of transformers
            setattr(self, name, kwargs.pop(name, None))
        refuse_unknown(kwargs)
        self.validate()

    @classmethod
    def from_model_config(cls, model_config: Any) -> "DiffusionVLGenerationConfig":
        """Defaults, with the special tokens of a model config."""
        return cls(eos_token_id=model_config.eos_token_id, pad_token_id=model_config.pad_token_id)

    @classmethod
    def from_stock(cls, config: GenerationConfig) -> "DiffusionVLGenerationConfig":
        """The settings of a config of transformers that differ from its defaults.

        Raises:
            UserError: One of them has no meaning here.
        """
        given = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
        return cls(**given)

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end an answer, as a list."""
        return _as_list(self.eos_token_id)

    @property
    def stop_string_list(self) -> list[str]:
        """Texts that end an answer, as a list."""
        return _as_list(self.stop_strings)

    def validate(self, **unused: Any) -> None:
        """Checks every value against its range.

        Raises:
            UserError: Naming the setting, its value and its range.
        """
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if not setting.range.fits(value):
                raise UserError(f"{name} must be {setting.range.allowed}, got {value!r}")


def _as_list(value: Any) -> list[Any]:
    """One value, several, or None, as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuses names that are not settings.

    Raises:
        UserError: Naming the first one, with the reason or the nearest setting.
    """
    for name in sorted(names):
        if name in _IMPOSSIBLE:
            raise UserError(f"generate() takes no {name}: {_IMPOSSIBLE[name]}")
        near = get_close_matches(name, SETTINGS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(sorted(SETTINGS))}"
        raise UserError(f"generate() has no setting {name!r}; {remedy}")


def resolve_settings(
    model: Any, config: GenerationConfig | None, given: dict[str, Any], prompt_width: int
) -> DiffusionVLGenerationConfig:
    """Joins the settings of one call, fills in what they leave open, and checks them against the model.

    Args:
        model: The block-diffusion model.
        config: Settings; the model's own `generation_config` if left out, and its special tokens where these settings
            have none. A stock `GenerationConfig` counts with what differs from its defaults.
        given: Settings that differ in this call.
        prompt_width: Columns of the padded prompts, which `max_length` counts.

    Raises:
        UserError: A setting is unknown, outside its range, or does not fit the model or the other settings.
    """
    own = model.generation_config
    config = own if config is None else config
    if not isinstance(config, GenerationConfig):
        raise UserError(f"generation_config must be a GenerationConfig, got a {type(config).__name__}")
    if not isinstance(config, DiffusionVLGenerationConfig):
        config = DiffusionVLGenerationConfig.from_stock(config)
    refuse_unknown(given.keys() - SETTINGS.keys())
    settings = copy.deepcopy(config)
    settings.update(defaults_only=True, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    settings.update(**given)
    if settings.pad_token_id is None and settings.eos_token_ids:
        settings.pad_token_id = settings.eos_token_ids[0]
    _resolve_length(settings, given, prompt_width)
    _resolve_temperature(settings, given)
    most = model.config.block_size
    size = settings.block_size = most if settings.block_size is None else settings.block_size
    if size > most:
        raise UserError(f"block_size={size} exceeds the checkpoint's; give 1 to {most}")
    settings.denoising_steps = size if settings.denoising_steps is None else settings.denoising_steps
    settings.sub_block_size = size if settings.sub_block_size is None else settings.sub_block_size
    _resolve_decoding(settings, model.config)
    if settings.denoising_steps > size:
        raise UserError(f"denoising_steps={settings.denoising_steps} exceeds the block size; give 1 to {size}")
    if size % settings.sub_block_size:
        raise UserError(f"sub_block_size={settings.sub_block_size} does not divide the block size {size}")
    if settings.num_return_sequences > 1 and settings.temperature == 0:
        raise UserError(
            f"num_return_sequences={settings.num_return_sequences} would repeat one answer at temperature 0; "
            "set do_sample=True"
        )
    return settings


def _resolve_decoding(settings: DiffusionVLGenerationConfig, config: Any) -> None:
    """Fills in how to decode and the number of masks that draft."""
    if settings.decoding is None:
        settings.decoding = "denoise" if getattr(config, "draft_adapter", None) is None else "speculative"
    if settings.decoding != "denoise" and config.clean_attention != "causal":
        raise UserError(
            f"decoding={settings.decoding!r} needs a clean stream that is causal, and this checkpoint has "
            f"clean_attention={config.clean_attention!r}; use decoding='denoise', or translate the base again "
            "with clean_attention='causal', the default, and train the result"
        )
    if settings.draft_size != "auto" and settings.draft_size > settings.block_size:
        raise UserError(f"draft_size={settings.draft_size} exceeds the block size; give 1 to {settings.block_size}")
    if settings.decoding == "autoregressive":
        settings.draft_size = 0


def _resolve_length(settings: DiffusionVLGenerationConfig, given: dict[str, Any], prompt_width: int) -> None:
    """Turns `max_length` into `max_new_tokens`, which wins where both are given."""
    chosen = "max_new_tokens" in given
    if "max_length" not in given:
        chosen = chosen or settings.max_new_tokens != SETTINGS["max_new_tokens"].default
    if settings.max_length is not None and not chosen:
        if settings.max_length <= prompt_width:
            raise UserError(
                f"max_length={settings.max_length} leaves no room for an answer after a prompt of {prompt_width} "
                "tokens; give max_new_tokens"
            )
        settings.max_new_tokens = settings.max_length - prompt_width


def _resolve_temperature(settings: DiffusionVLGenerationConfig, given: dict[str, Any]) -> None:
    """Turns `do_sample` into a temperature; a temperature of this call counts more than a `do_sample` before it."""
    if settings.do_sample is False:
        settings.temperature = 0.0
    elif settings.do_sample and settings.temperature == 0 and "temperature" not in given:
        settings.temperature = 1.0
    elif given.get("do_sample") and settings.temperature == 0:
        raise UserError("do_sample=True cannot draw at temperature 0; give a temperature above 0, or do_sample=False")
