"""Decoding settings as lmms-eval's tasks and users give them, turned into those of `generate`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..modeling.errors import UserError
from ..modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from . import AR, BLOCK_DIFFUSION

SHARED = ("max_new_tokens", "temperature", "top_k", "top_p")
DIFFUSION_ONLY = (
    "denoising_steps",
    "remasking",
    "confidence_threshold",
    "entropy_bound",
    "tempered_confidence",
    "sub_block_size",
    "fused_commit",
)
# lmms-eval's own, which have another meaning here than being handed on to `generate`.
TRANSLATED = ("until", "do_sample", "num_beams", "repetition_penalty", "image_aspect_ratio", "block_size")
KNOWN = (*SHARED, *DIFFUSION_ONLY, *TRANSLATED)
# What the reference implementation calls the same things.
REFERENCE_NAMES = {
    "gen_length": "max_new_tokens",
    "steps": "denoising_steps",
    "remasking_strategy": "remasking",
    "bd3lm_block_size": "block_size",
}
MAX_NEW_TOKENS = DiffusionVLGenerationConfig().max_new_tokens  # where nobody says, for AR models, too


@dataclass(frozen=True)
class Decoding:
    """How the answers of a batch are decoded.

    Attributes:
        generate: Arguments of the model's `generate`.
        until: Texts that end an answer; it is cut in front of the first one.
        notes: What was asked for and is not done, a sentence each.
    """

    generate: dict[str, Any]
    until: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, not taken by their probability alone."""
        return bool(self.generate["do_sample"]) if "do_sample" in self.generate else self.generate["temperature"] > 0


def resolve(
    kind: str, block_size: int | None, task: Mapping[str, Any], given: Mapping[str, Any], where: str = "the task"
) -> Decoding:
    """Joins what a task asks for with what the user gave to the model.

    Args:
        kind: `ar` or `block_diffusion`.
        block_size: The checkpoint's; None for AR.
        task: A request's generation kwargs: the task's own, with `--gen_kwargs` over them.
        given: Settings in `--model_args`, which win.
        where: Name of the task, for messages.

    Raises:
        UserError: A setting is unknown, out of its range, or means something that this model cannot do.
    """
    for source, settings in ((f"gen_kwargs of {where}", task), ("model_args", given)):
        check_names(settings, source)
    notes = [
        f"{name}={task[name]!r} of {where} gives way to {name}={value!r} of model_args"
        for name, value in given.items()
        if name in task and task[name] is not None and task[name] != value
    ]
    settings = {name: value for name, value in {**task, **given}.items() if value is not None}
    _check_kind(settings, kind, block_size)
    if "image_aspect_ratio" in settings:
        ratio = settings["image_aspect_ratio"]
        notes.append(f"image_aspect_ratio={ratio!r} is for LLaVA's own code; the checkpoint's processor decides here")
    temperature, note = _temperature(settings)
    decoding = {
        "max_new_tokens": settings.get("max_new_tokens", MAX_NEW_TOKENS),
        "temperature": temperature,
        "top_k": settings.get("top_k", 0) if temperature else 0,
        "top_p": settings.get("top_p", 1.0) if temperature else 1.0,
        **{name: settings[name] for name in DIFFUSION_ONLY if name in settings},
    }
    DiffusionVLGenerationConfig(**decoding)  # checks the ranges
    if kind == AR:
        decoding = _autoregressive(decoding, settings)
    return Decoding(decoding, _until(settings.get("until", ())), (*notes, *note))


def plain_decoding(model: Any, kind: str, given: Mapping[str, Any]) -> Decoding:
    """Takes settings by our own names; those that are not given are the checkpoint's.

    Args:
        model: The model; its generation config is read.
        kind: `ar` or `block_diffusion`.
        given: Settings of `generate`.

    Raises:
        UserError: A setting means something that an AR model cannot do.
    """
    settings = {name: value for name, value in given.items() if name != "stop_strings"}
    until = tuple(given.get("stop_strings") or ())
    if kind == BLOCK_DIFFUSION:
        return Decoding({"temperature": model.generation_config.temperature, **settings}, until)
    time = {name: settings.pop(name) for name in ("max_time",) if name in settings}
    decoding = resolve(kind, None, {}, settings)
    return Decoding({**decoding.generate, **time}, until)


def check_names(settings: Mapping[str, Any], source: str, others: tuple[str, ...] = ()) -> None:
    """Refuses settings that nobody knows.

    Args:
        settings: By name.
        source: Where they were given.
        others: More names that may be given there, for the message.

    Raises:
        UserError: Naming them, and what the reference's name is called here.
    """
    unknown = sorted(set(settings) - set(KNOWN))
    if unknown:
        meant = [f"{name!r} is called {REFERENCE_NAMES[name]!r} here" for name in unknown if name in REFERENCE_NAMES]
        hint = "; ".join(meant) or f"known are {', '.join((*others, *KNOWN))}"
        raise UserError(f"{source}: unknown settings {unknown}; {hint}")


def _check_kind(settings: Mapping[str, Any], kind: str, block_size: int | None) -> None:
    """Refuses what a model of this kind cannot do."""
    if settings.get("num_beams", 1) != 1:
        raise UserError(f"num_beams={settings['num_beams']!r}: block diffusion has no beams, nor AR beside it; give 1")
    if kind == AR:
        extra = [name for name in (*DIFFUSION_ONLY, "block_size") if name in settings]
        if extra:
            raise UserError(f"an autoregressive checkpoint has no {', '.join(extra)}; leave them out")
        return
    if settings.get("repetition_penalty", 1) != 1:
        raise UserError(
            f"repetition_penalty={settings['repetition_penalty']!r}: block decoding has none, for a block's tokens are "
            "drawn together; leave it out"
        )
    if settings.get("block_size", block_size) != block_size:
        raise UserError(
            f"block_size={settings['block_size']!r}: this checkpoint was trained with blocks of {block_size}, which it "
            "keeps; leave it out, or translate and train another one"
        )
    steps = settings.get("denoising_steps", 1)
    if block_size is not None and isinstance(steps, int) and steps > block_size:
        raise UserError(f"denoising_steps={steps} exceeds the block size of the checkpoint; give 1 to {block_size}")


def _until(given: Any) -> tuple[str, ...]:
    """Texts that end an answer. On a command line, several are a JSON list: until=["a","b"].

    Raises:
        UserError: There is something else among them.
    """
    texts = given
    if isinstance(given, str):
        texts = json.loads(given) if given.startswith('["') and given.endswith('"]') else [given]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"until must be a text or a list of texts, got {given!r}")
    return tuple(text for text in texts if text)


def _temperature(settings: Mapping[str, Any]) -> tuple[float, tuple[str, ...]]:
    """The temperature, 0 without sampling as in transformers, and what there is to say about it."""
    temperature = settings.get("temperature")
    if settings.get("do_sample") is True:
        if temperature == 0:
            raise UserError("do_sample=True contradicts temperature=0; give one of them")
        return (1.0 if temperature is None else temperature), ()
    if settings.get("do_sample") is False and temperature:
        return 0, (f"temperature={temperature!r} is not used beside do_sample=False",)
    return temperature or 0, ()


def _autoregressive(decoding: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the words of transformers' `generate`."""
    penalty = {name: settings[name] for name in ("repetition_penalty",) if name in settings}
    if decoding["temperature"]:
        return {**decoding, **penalty, "do_sample": True}
    # None, or transformers warns that they have no effect.
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"max_new_tokens": decoding["max_new_tokens"], **greedy, **penalty}
