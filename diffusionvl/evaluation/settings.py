"""Turns decoding settings, as lmms-eval's tasks and users give them, into those of `generate`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..modeling.errors import UserError
from ..modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig, resolve_settings
from ..modeling.settings import SETTINGS, split_choices
from . import AR, BLOCK_DIFFUSION

DRAWS = ("temperature", "top_k", "top_p")
SHARED = ("max_new_tokens", "min_new_tokens", "do_sample", *DRAWS, "num_beams", "repetition_penalty")
OF_THE_ENGINE = ("decoding", "denoising", "constraint")
DIFFUSION_ONLY = tuple(name for name, setting in SETTINGS.items() if setting.group in OF_THE_ENGINE)
TRANSLATED = ("until", "image_aspect_ratio")  # these are not handed on to `generate`
KNOWN = (*SHARED, *DIFFUSION_ONLY, *TRANSLATED)
# Names of the same settings in the reference implementation.
REFERENCE_NAMES = {
    "gen_length": "max_new_tokens",
    "steps": "denoising_steps",
    "remasking_strategy": "remasking",
    "bd3lm_block_size": "block_size",
}


@dataclass(frozen=True)
class Decoding:
    """How the answers to some questions are decoded.

    Attributes:
        generate: Arguments of the model's `generate`; `do_sample` is among them.
        until: Texts that end an answer, which is cut before the first one.
        notes: A sentence for each setting that is not obeyed.
    """

    generate: dict[str, Any]
    until: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, rather than taken by their probability alone."""
        return bool(self.generate["do_sample"])


def resolve(
    kind: str, block_size: int | None, task: Mapping[str, Any], given: Mapping[str, Any], where: str = "the task"
) -> Decoding:
    """Joins the settings of a task with those that the user gave to the model.

    Args:
        kind: `ar` or `block_diffusion`.
        block_size: Block size of the checkpoint; None for AR.
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
    if isinstance(settings.get("choices"), str):  # of a command line
        settings["choices"] = split_choices(settings["choices"])
    if "image_aspect_ratio" in settings:
        ratio = settings["image_aspect_ratio"]
        notes.append(f"image_aspect_ratio={ratio!r} is for LLaVA's own code; the checkpoint's processor decides here")
    draws = settings.get("do_sample", bool(settings.get("temperature")))
    if draws and settings.get("temperature") == 0:
        raise UserError("do_sample=True contradicts temperature=0; give one of them")
    if not draws and settings.get("temperature"):
        notes.append(f"temperature={settings['temperature']!r} is not used with do_sample=False")
    decoding = {name: value for name, value in settings.items() if name not in (*DRAWS, *TRANSLATED)}
    decoding = {"max_new_tokens": SETTINGS["max_new_tokens"].default, **decoding, "do_sample": draws}
    if draws:  # all are given, since transformers has a top_k of 50
        decoding |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | {n: settings[n] for n in DRAWS if n in settings}
    DiffusionVLGenerationConfig(**decoding)  # checks the ranges
    if kind == AR and not draws:
        decoding |= dict.fromkeys(DRAWS)  # or transformers warns that those of the checkpoint have no effect
    return Decoding(decoding, _until(settings.get("until", ())), tuple(notes))


def plain_decoding(model: Any, kind: str, given: Mapping[str, Any]) -> Decoding:
    """Takes settings by their names in `generate`; those that are not given are the checkpoint's.

    Args:
        model: The model.
        kind: `ar` or `block_diffusion`.
        given: Settings of `generate`.

    Raises:
        UserError: A setting does not fit the model.
    """
    settings = {name: value for name, value in given.items() if name != "stop_strings"}
    until = tuple(given.get("stop_strings") or ())
    if kind == BLOCK_DIFFUSION:
        samples = resolve_settings(model, None, settings, prompt_width=0).temperature > 0
        return Decoding({**settings, "do_sample": samples}, until)
    time = {name: settings.pop(name) for name in ("max_time",) if name in settings}
    return Decoding({**resolve(kind, None, {}, settings).generate, **time}, until)


def check_names(settings: Mapping[str, Any], source: str, others: tuple[str, ...] = ()) -> None:
    """Refuses settings that nobody knows.

    Args:
        settings: Settings by name.
        source: Where they were given.
        others: More names that may be given there, for the message.

    Raises:
        UserError: There are unknown names; the message says how a name of the reference is called here.
    """
    unknown = sorted(set(settings) - set(KNOWN))
    if unknown:
        meant = [f"{name!r} is called {REFERENCE_NAMES[name]!r} here" for name in unknown if name in REFERENCE_NAMES]
        hint = "; ".join(meant) or f"known are {', '.join((*others, *KNOWN))}"
        raise UserError(f"{source}: unknown settings {unknown}; {hint}")


def _check_kind(settings: Mapping[str, Any], kind: str, block_size: int | None) -> None:
    """Refuses what a model of this kind cannot do."""
    if kind == AR:
        if extra := [name for name in DIFFUSION_ONLY if name in settings]:
            raise UserError(f"an autoregressive checkpoint has no {', '.join(extra)}; leave them out")
        return
    size = settings.get("block_size", block_size)
    if block_size is not None and isinstance(size, int) and size > block_size:
        raise UserError(f"block_size={size} exceeds the checkpoint's; give 1 to {block_size}")
    steps = settings.get("denoising_steps", 1)
    if block_size is not None and isinstance(steps, int) and steps > block_size:
        raise UserError(f"denoising_steps={steps} exceeds the block size of the checkpoint; give 1 to {block_size}")


def _until(given: Any) -> tuple[str, ...]:
    """Reads texts that end an answer. On a command line, several are a JSON list: until=["a","b"].

    Raises:
        UserError: There is something else among them.
    """
    texts = given
    if isinstance(given, str):
        texts = json.loads(given) if given.startswith('["') and given.endswith('"]') else [given]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"until must be a text or a list of texts, got {given!r}")
    return tuple(text for text in texts if text)
