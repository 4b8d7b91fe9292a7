"""How answers are decoded: the settings of `generate` and their ranges."""

import copy
from typing import Any

from transformers import GenerationConfig

from .errors import UserError
from .families import MEDIA_INPUTS, TOKEN_TYPE_INPUTS
from .remasking import REMASKING


class DiffusionVLGenerationConfig(GenerationConfig):
    """How answers are decoded. Unknown names are an error.

    Args:
        max_new_tokens: Longest answer, in tokens.
        denoising_steps: S, steps a block of D tokens, 1 to D; D if left out.
        remasking: A policy of `remasking_diffusionvl`: `low_confidence_static`, `low_confidence_dynamic` or
            `entropy_bounded`.
        sub_block_size: Tokens of a block that are denoised together, a divisor of D; the block size if left out.
            Approximate if smaller: within a block, the other sub-blocks' keys and values are those that they had when
            this sub-block began (Fast-dLLM v2's dual cache).
        confidence_threshold: Probability above which dynamic remasking keeps a token.
        entropy_bound: Nats of entropy that entropy-bounded remasking spends in a step.
        temperature: 0 takes the most probable token.
        top_k: Sample among the k most probable tokens; 0 for all.
        top_p: Sample among the smallest set of tokens that reaches this probability; 1 for all.
        stop_strings: A text or texts that end an answer; the tokens that hold them belong to the answer. Special tokens
            are no text.
        max_time: Seconds after which an answer ends with the blocks that it has; no limit if left out.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step;
            off, each commit (and the prefill) is a forward of its own, as in the reference.
        return_dict_in_generate: Return a `DiffusionVLGenerationOutput` instead of the sequences alone.
        output_history: Keep every denoising step in the output, for a film.
        eos_token_id: The id or ids that end an answer.
        pad_token_id: Stands behind the end of a shorter answer; the first end id if left out.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.max_new_tokens: int = kwargs.pop("max_new_tokens", 256)
        self.denoising_steps: int | None = kwargs.pop("denoising_steps", None)
        self.remasking: str = kwargs.pop("remasking", "low_confidence_static")
        self.sub_block_size: int | None = kwargs.pop("sub_block_size", None)
        self.confidence_threshold: float = kwargs.pop("confidence_threshold", 0.85)
        self.entropy_bound: float = kwargs.pop("entropy_bound", 0.1)
        self.temperature: float = kwargs.pop("temperature", 0.0)
        self.top_k: int = kwargs.pop("top_k", 0)
        self.top_p: float = kwargs.pop("top_p", 1.0)
        self.stop_strings: str | list[str] | None = kwargs.pop("stop_strings", None)
        self.max_time: float | None = kwargs.pop("max_time", None)
        self.fused_commit: bool = kwargs.pop("fused_commit", True)
        self.return_dict_in_generate: bool = kwargs.pop("return_dict_in_generate", False)
        self.output_history: bool = kwargs.pop("output_history", False)
        self.eos_token_id: int | list[int] | None = kwargs.pop("eos_token_id", None)
        self.pad_token_id: int | None = kwargs.pop("pad_token_id", None)
        self.bos_token_id: int | None = kwargs.pop("bos_token_id", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        self._commit_hash: str | None = kwargs.pop("_commit_hash", None)
        self._from_model_config: bool | None = kwargs.pop("_from_model_config", None)
        if kwargs:
            raise UserError(f"unknown generation settings {sorted(kwargs)}; known are {self.setting_names}")
        self.validate()

    @classmethod
    def from_model_config(cls, model_config: Any) -> "DiffusionVLGenerationConfig":
        """Defaults, with the special tokens of a model config."""
        return cls(eos_token_id=model_config.eos_token_id, pad_token_id=model_config.pad_token_id)

    @property
    def setting_names(self) -> list[str]:
        """Names of the settings, without what transformers notes down about a config."""
        return sorted(name for name in vars(self) if not name.startswith("_") and name != "transformers_version")

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end an answer, as a list."""
        eos = self.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @property
    def stop_string_list(self) -> list[str]:
        """Texts that end an answer, as a list."""
        stops = self.stop_strings
        return [] if stops is None else [stops] if isinstance(stops, str) else list(stops)

    def validate(self, **unused: Any) -> None:
        """Checks the values.

        Raises:
            ValueError: Naming the setting, its value and its range.
        """
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        stops = self.stop_strings
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        for name, good, allowed in (
            ("max_new_tokens", _is_integer(self.max_new_tokens, 1), "an integer of at least 1"),
            (
                "denoising_steps",
                self.denoising_steps is None or _is_integer(self.denoising_steps, 1),
                "an integer of at least 1, or None for the block size",
            ),
            (
                "sub_block_size",
                self.sub_block_size is None or _is_integer(self.sub_block_size, 1),
                "an integer of at least 1 that divides the block size, or None for the block size",
            ),
            ("remasking", self.remasking in [*REMASKING], f"one of {[*REMASKING]}"),
            ("confidence_threshold", _is_number(self.confidence_threshold, 1.0), "a number in [0, 1]"),
            ("entropy_bound", _is_number(self.entropy_bound, float("inf")), "a finite number of at least 0"),
            ("temperature", _is_number(self.temperature, float("inf")), "a finite number of at least 0"),
            ("top_k", _is_integer(self.top_k, 0), "an integer of at least 0"),
            ("top_p", _is_number(self.top_p, 1.0) and self.top_p > 0, "a number in (0, 1]"),
            (
                "stop_strings",
                all(isinstance(stop, str) and stop for stop in stops),
                "a text that is not empty, a list of them, or None",
            ),
            (
                "max_time",
                self.max_time is None or _is_number(self.max_time, float("inf")),
                "a finite number of seconds of at least 0, or None",
            ),
            ("fused_commit", isinstance(self.fused_commit, bool), "True or False"),
            ("return_dict_in_generate", isinstance(self.return_dict_in_generate, bool), "True or False"),
            ("output_history", isinstance(self.output_history, bool), "True or False"),
            (
                "eos_token_id",
                self.eos_token_id is None or all(_is_integer(token_id, 0) for token_id in eos),
                "a token id, a list of them, or None",
            ),
            (
                "pad_token_id",
                self.pad_token_id is None or _is_integer(self.pad_token_id, 0),
                "a token id, or None for the first id that ends an answer",
            ),
        ):
            if not good:
                raise UserError(f"{name} must be {allowed}, got {getattr(self, name)!r}")


def _is_integer(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, most: float) -> bool:
    """Whether a value is a finite number in [0, most]; NaN compares false."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most and value < float("inf")
    )


def resolve_settings(
    model: Any, config: DiffusionVLGenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[DiffusionVLGenerationConfig, dict[str, Any]]:
    """Splits keyword arguments into settings and media inputs, and checks the settings against the model.

    Args:
        model: The block-diffusion model.
        config: Settings; the model's own `generation_config` if left out, and its special tokens where these settings
            have none.
        kwargs: Settings that differ in this call, and the inputs for images and videos.

    Raises:
        UserError: A setting is unknown or out of its range.
    """
    own = model.generation_config
    settings = copy.deepcopy(own if config is None else config)
    if not isinstance(settings, DiffusionVLGenerationConfig):
        raise UserError(f"generation_config must be a DiffusionVLGenerationConfig, got a {type(settings).__name__}")
    settings.update(defaults_only=True, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    known = settings.setting_names
    # The model reads the kind of a token off its id.
    unknown = set(kwargs) - {*known, *MEDIA_INPUTS, *TOKEN_TYPE_INPUTS}
    if unknown:
        raise UserError(f"generate() does not know {sorted(unknown)}; its settings are {known}")
    settings.update(**{name: value for name, value in kwargs.items() if name in known})
    if settings.pad_token_id is None and settings.eos_token_ids:
        settings.pad_token_id = settings.eos_token_ids[0]
    block_size = model.config.block_size
    if settings.denoising_steps is None:
        settings.denoising_steps = block_size
    if settings.denoising_steps > block_size:
        raise UserError(f"denoising_steps={settings.denoising_steps} exceeds the block size; give 1 to {block_size}")
    if settings.sub_block_size is None:
        settings.sub_block_size = block_size
    if block_size % settings.sub_block_size:
        raise UserError(f"sub_block_size={settings.sub_block_size} does not divide the block size {block_size}")
    return settings, {name: kwargs[name] for name in MEDIA_INPUTS if kwargs.get(name) is not None}
