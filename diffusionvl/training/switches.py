"""Which switches of the noise, the drafts and the teacher exclude one another, whatever the model and the rows are."""

from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from ..modeling.errors import UserError

if TYPE_CHECKING:
    from .arguments import BlockDiffusionConfig

# Settings of noisy streams, which the AR objective does not have.
NOISY = (
    *("draft", "ar_weight", "own_states", "mask_slope", "certainty_weight", "random_block_size", "block_growth"),
    *("on_policy_from", "targets", "teacher", "teacher_top_k", "weighting", "noise_order", "complementary"),
)


def changed(settings: Any) -> set[str]:
    """Names of the settings that somebody has set."""

    def default(setting: Field) -> Any:
        return setting.default if setting.default_factory is MISSING else setting.default_factory()

    return {setting.name for setting in fields(settings) if getattr(settings, setting.name) != default(setting)}


def check_drafts(args: "BlockDiffusionConfig") -> None:
    """Raises a UserError for settings of drafts without drafts, or that drafts exclude."""
    defaults = {"draft_decay": None, "draft_noise": "full"}
    for name, default in defaults.items():
        if not args.draft and getattr(args, name) != default:
            raise UserError(f"{name}={getattr(args, name)!r} belongs to drafts; add draft: true, or take it out")
    for name in ("teacher_top_k", "teacher", "teacher_weight"):
        taught = args.targets == "teacher" or (args.on_policy_from is not None and name != "teacher_weight")
        if getattr(args, name) == "":
            raise UserError(f"{name} is empty; give the folder or hub id of an AR model, or take it out")
        if not taught and getattr(args, name) not in (None, 1.0):
            raise UserError(f"{name} needs targets 'teacher'; set it, or take {name} out")
    if not 0 < args.teacher_weight <= 1:
        raise UserError(f"teacher_weight must be above 0 and at most 1, got {args.teacher_weight}")
    if args.draft and (args.noise_order == "reference" or args.dataloader_persistent_workers):
        raise UserError("draft cuts rows anew in each epoch; take dataloader_persistent_workers or noise_order out")


def check_noise(args: "BlockDiffusionConfig") -> None:
    """Raises a UserError for switches of the noise and of the block sizes that exclude one another."""
    full = args.draft and args.draft_noise == "full"
    sizes = args.random_block_size or args.block_growth is not None
    begin, chosen = args.on_policy_from, "with own_states or on_policy_from the model says what is masked"
    asks, cut = begin is not None, "a draft begins with masks alone, and each copy is cut by itself"
    for wrong, what, why in (
        (args.mask_slope > 1, f"mask_slope={args.mask_slope}", "it is at most 1"),
        (args.mask_slope and full, "mask_slope", "a draft begins with masks alone; set draft_noise to random"),
        (args.own_states and full, "own_states", "a draft begins with masks alone; set draft_noise to random"),
        ((args.own_states or asks) and args.mask_slope, "mask_slope", chosen),
        ((args.own_states or asks) and args.complementary, "complementary", chosen),
        (args.draft and args.complementary, "complementary", cut),
        (full and args.noise_order != "permuted", f"noise_order {args.noise_order}", cut),
        (begin == 0 and args.own_states, "own_states", "with on_policy_from 0 all states are from own answers"),
        (not asks and "on_policy_tokens" in changed(args), "on_policy_tokens", "it belongs to on_policy_from"),
        (asks and args.draft, "draft", "on_policy_from denoises blocks; use `diffusionvl draft` for drafts"),
        (asks and 0 < args.max_steps <= begin, f"on_policy_from={begin}", f"the run has {args.max_steps} steps"),
        (asks and sizes, "another block size", "on_policy_from decodes with the checkpoint's"),
        (asks and args.teacher_weight != 1, "teacher_weight", "an answer of the model's own is not a record's"),
        (sizes and args.noise_order == "reference", "noise_order reference", "it knows one block size"),
        (args.random_block_size and args.block_growth, "random_block_size", "block_growth says the sizes"),
        (args.growth_steps and not args.block_growth, "growth_steps", "it belongs to block_growth"),
    ):
        if wrong:
            raise UserError(f"{what} does not fit: {why}; take it out")
    if args.weighting == "mask_ratio" and (args.noise_order == "reference" or args.mask_slope):
        raise UserError(
            "weighting mask_ratio needs levels that are uniform for each block; not noise_order reference or mask_slope"
        )
    for name in NOISY:
        if args.objective == "ar" and name in changed(args):
            raise UserError(f"{name} belongs to objective 'block_diffusion'; take it out for 'ar'")
    if args.block_growth is not None:
        _check_growth(args, args.block_growth)


def _check_growth(args: "BlockDiffusionConfig", sizes: list[int]) -> None:
    """Raises a UserError for block sizes that do not grow, or that a run does not go through."""
    ascending = sorted({*sizes}) == sizes and len(sizes) > 1 and sizes[0] > 0
    if not ascending or any(sizes[-1] % size for size in sizes):
        raise UserError(f"block_growth must be ascending sizes that divide the last, such as [1, 4, 8]; got {sizes}")
    lengths = args.growth_steps
    if lengths is None:
        return
    whole, shares = (sum(x for x in lengths if (x >= 1) == of_steps) for of_steps in (True, False))
    ends = whole / args.max_steps + shares if args.max_steps > 0 else shares
    if len(lengths) != len(sizes) - 1 or not all(0 < x < float("inf") for x in lengths) or ends >= 1:
        raise UserError(
            f"growth_steps must be the steps of each of the sizes {sizes[:-1]}, or their shares of the run, and "
            f"end before it does; got {lengths}"
        )
