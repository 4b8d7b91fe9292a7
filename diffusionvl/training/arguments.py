"""Settings of a training run beside model and records: transformers' own, and the objective's."""

import os
import warnings
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments

from ..modeling.errors import UserError
from ..objective.distillation import DRAFT_NOISES, TARGETS
from ..objective.loss import NORMALIZERS, WEIGHTINGS
from ..objective.noise_schedule import NOISE_ORDERS
from .callbacks import check_trackers
from .model_arguments import check_choice
from .parts import PARTS

OBJECTIVES = ("block_diffusion", "ar")
STAGES = ("ar", "align", "translate")
LEAST = {
    "learning_rate": 0,
    "vision_learning_rate": 0,
    "weight_decay": 0,
    "num_train_epochs": 0,
    "max_steps": -1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dry_run_processes": 1,
    "peak_tflops": 1e-3,
    "sample_steps": 1,
    "sample_count": 1,
    "ar_weight": 0,
    "draft_decay": 1e-3,
    "teacher_top_k": 1,
    "on_policy_from": 0,
    "on_policy_tokens": 1,
    "certainty_weight": 0,
    "mask_slope": 0,
}
# Settings of noisy streams, which the AR objective does not have.
NOISY = (
    *("draft", "ar_weight", "own_states", "mask_slope", "certainty_weight", "random_block_size", "block_growth"),
    *("on_policy_from", "targets", "teacher", "teacher_top_k", "weighting", "noise_order", "complementary"),
)
# Settings of transformers that would do nothing here, or break the objective, and why.
UNUSED = {
    "label_smoothing_factor": "the loss is a cross-entropy with the tokens themselves",
    "use_liger_kernel": "the LM head already sees the predicted tokens alone",
    "liger_kernel_config": "the LM head already sees the predicted tokens alone",
    "auto_find_batch_size": "the rows of a step are fixed; take a smaller per_device_train_batch_size",
    "remove_unused_columns": "rows have no columns",
    "length_column_name": "rows have no columns",
    "label_names": "rows carry their labels themselves",
    "include_for_metrics": "evaluation computes the loss alone",
    "batch_eval_metrics": "evaluation computes the loss alone",
    "eval_do_concat_batches": "evaluation computes the loss alone",
    "eval_use_gather_object": "evaluation computes the loss alone",
    "eval_accumulation_steps": "evaluation computes the loss alone",
    "do_predict": "training predicts nothing",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
}


def _changed(settings: Any) -> set[str]:
    """Names of the settings that somebody has set."""

    def default(setting: Field) -> Any:
        return setting.default if setting.default_factory is MISSING else setting.default_factory()

    return {setting.name for setting in fields(settings) if getattr(settings, setting.name) != default(setting)}


@dataclass
class BlockDiffusionConfig(TrainingArguments):
    """transformers' TrainingArguments, and the objective."""

    objective: str = field(default="block_diffusion", metadata={"help": f"one of {OBJECTIVES}"})
    normalizer: str = field(
        default="per_sample", metadata={"help": f"what the loss is divided by, one of {NORMALIZERS}"}
    )
    noise_order: str = field(
        default="permuted", metadata={"help": f"how noise levels lie over a row's blocks, one of {NOISE_ORDERS}"}
    )
    weighting: str = field(
        default="inverse_t", metadata={"help": f"weight of a masked token by its block's noise, one of {WEIGHTINGS}"}
    )
    complementary: bool = field(
        default=False, metadata={"help": "of two noisy views, the second masks what the first leaves (noisy_views: 2)"}
    )
    ar_weight: float | None = field(
        default=None,
        metadata={
            "help": "weight of the next-token loss on a causal clean stream, beside the diffusion loss; 1 by default, "
            "0 for drafts and for a clean stream of blocks"
        },
    )
    draft: bool = field(
        default=False,
        metadata={
            "help": "train drafts, blocks that begin at random, for speculative decoding; needs clean_attention causal"
        },
    )
    draft_noise: str = field(
        default="full",
        metadata={"help": f"what a draft begins with, one of {DRAFT_NOISES}: masks alone, or some of the tokens"},
    )
    draft_decay: float | None = field(
        default=None, metadata={"help": "place k of a draft weighs exp(-(k - 1) / draft_decay); 1 by default"}
    )
    random_block_size: bool = field(
        default=False,
        metadata={
            "help": "draw each record's block size in each step, of the powers of two up to the checkpoint's (of each "
            "copy, with a causal clean stream)"
        },
    )
    block_growth: list[int] | None = field(
        default=None, metadata={"help": "block sizes that a run goes through, such as 1 4 8; the checkpoint's is last"}
    )
    growth_steps: list[float] | None = field(
        default=None,
        metadata={
            "help": "block_growth: steps of each size but the last, or their share of the run if below 1; equal shares "
            "by default"
        },
    )
    mask_slope: float = field(
        default=0.0, metadata={"help": "mask the last tokens of a block more often than the first, 0 to 1"}
    )
    own_states: bool = field(
        default=False,
        metadata={"help": "mask what the model is least certain of, as when it decodes; costs one more forward"},
    )
    certainty_weight: float = field(
        default=0.0, metadata={"help": "weight of the entropy of masked tokens that are right already"}
    )
    targets: str = field(
        default="data",
        metadata={
            "help": f"what masked tokens learn, one of {TARGETS}: the records' tokens, or what an AR model predicts "
            "(`teacher`, or the causal clean stream)"
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "targets teacher: a frozen AR checkpoint to learn from; by default the model's own clean stream"
        },
    )
    teacher_weight: float = field(
        default=1.0, metadata={"help": "targets teacher: its share of the loss; the rest is the records' tokens'"}
    )
    teacher_top_k: int | None = field(
        default=None,
        metadata={"help": "targets teacher: its most probable tokens, the only ones that count; all by default"},
    )
    on_policy_from: float | None = field(
        default=None,
        metadata={
            "help": "steps, or their share of the run if below 1, after which the model answers the prompts itself and "
            "learns what a teacher predicts there; 0 for the whole run"
        },
    )
    on_policy_tokens: int = field(default=128, metadata={"help": "on_policy_from: tokens of the longest answer"})
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the vision tower; that of the rest by default"}
    )
    train_modules: list[str] | None = field(
        default=None, metadata={"help": f"parts that are trained, of {PARTS}; all by default"}
    )
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "learning rate schedule"})
    warmup_steps: float = field(default=0.03, metadata={"help": "warm-up steps, or their share if below 1"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "not used: rows have no columns"})
    report_to: str | None = field(default="none", metadata={"help": "wandb, tensorboard, trackio or none"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines of the log"})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "rows of an optimizer step over all processes; gradient_accumulation_steps follows from it"},
    )
    stage: str | None = field(
        default=None, metadata={"help": f"what the recipe is for, one of {STAGES}: it is checked against the rest"}
    )
    peak_tflops: float | None = field(
        default=None, metadata={"help": "what a device can do, for the MFU; known for common GPUs by their names"}
    )
    sample_steps: int | None = field(default=None, metadata={"help": "steps between two tables of answers; none"})
    sample_count: int = field(default=4, metadata={"help": "answers in such a table"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace what output_dir holds, a finished run or files of other programs"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print shapes, steps and memory, and train nothing"})
    dry_run_processes: int = field(default=1, metadata={"help": "processes that the dry run plans for"})
    dataloader_multiprocessing_context: str | None = field(
        default=None, metadata={"help": "how processes that load data start; fork by default"}
    )
    fsdp: str | None = field(
        default=None,
        metadata={"help": "implied by fsdp_config", "nargs": "?", "const": True},  # as in transformers
    )
    # A batch may lack images, and nothing reads the last norm of a LLaVA's tower. DDP stops at parameters without a
    # gradient unless it looks for them, which transformers turns off with gradient checkpointing where this is None.
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "let DDP look for parameters that a batch does not reach"}
    )
    average_tokens_across_devices: bool = field(
        default=True, metadata={"help": "divide the loss by the count over all processes"}
    )

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("targets", self.targets, TARGETS)
        check_choice("draft_noise", self.draft_noise, DRAFT_NOISES)
        self._check_draft()
        check_choice("normalizer", self.normalizer, NORMALIZERS)
        check_choice("noise_order", self.noise_order, NOISE_ORDERS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        for module in self.train_modules or []:
            check_choice("train_modules", module, PARTS)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):  # NaN compares false
                raise UserError(f"{name} must be a number of at least {least}, got {value}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be at least 0 and below 2**32, got {self.seed}")
        self._check_noise()
        if self.stage is not None:
            self._check_stage(self.stage)
        if self.max_steps == 0:
            raise UserError("max_steps must be at least 1, or -1 to go by num_train_epochs; got 0")
        if not self.output_dir:
            raise UserError("output_dir is not set; give the folder for the trained model")
        for name in UNUSED.keys() & _changed(self):
            raise UserError(f"{name}={getattr(self, name)!r} is not used here, since {UNUSED[name]}; take it out")
        if self.optim_args and not all(len(pair.split("=")) == 2 for pair in self.optim_args.split(",")):
            raise UserError(f"optim_args must read name=value,name=value, got {self.optim_args!r}")
        self.report_to = self.report_to or "none"  # transformers takes None for the name of a service
        check_trackers([self.report_to] if isinstance(self.report_to, str) else self.report_to)
        if self.dataloader_num_workers and self.dataloader_multiprocessing_context is None:
            self.dataloader_multiprocessing_context = "fork"  # Python 3.14's default would pickle the processor
        started = int(os.environ.get("WORLD_SIZE", 1))
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation(self.dry_run_processes if self.dry_run else started)
        if self.fsdp_config is not None or self.fsdp == "yes":
            self.fsdp = True  # type: ignore[assignment]
        without = not torch.accelerator.is_available()
        if self.dry_run or (without and (self.bf16 or started > 1)):
            self.use_cpu = True  # else transformers refuses bf16, and takes each of several processes for the only one
        with warnings.catch_warnings():  # 5.23 renames it activation_checkpointing; 5.17 knows no other name
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()
        if self.n_gpu > 1:  # transformers would split batches with DataParallel
            raise UserError(
                f"one process sees {self.n_gpu} GPUs; start one for each with `bash scripts/train_stage.sh`, "
                "or set CUDA_VISIBLE_DEVICES"
            )
        if self.device.type == "cpu":  # memory is pinned for an accelerator; without one torch warns at every epoch
            self.dataloader_pin_memory = False

    def _check_draft(self) -> None:
        """Raises a UserError for settings of drafts without drafts, or that drafts exclude."""
        defaults = {"draft_decay": None, "draft_noise": "full"}
        for name, default in defaults.items():
            if not self.draft and getattr(self, name) != default:
                raise UserError(f"{name}={getattr(self, name)!r} belongs to drafts; add draft: true, or take it out")
        for name in ("teacher_top_k", "teacher", "teacher_weight"):
            taught = self.targets == "teacher" or (self.on_policy_from is not None and name != "teacher_weight")
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; give the folder or hub id of an AR model, or take it out")
            if not taught and getattr(self, name) not in (None, 1.0):
                raise UserError(f"{name} needs targets 'teacher'; set it, or take {name} out")
        if not 0 < self.teacher_weight <= 1:
            raise UserError(f"teacher_weight must be above 0 and at most 1, got {self.teacher_weight}")
        if self.draft and (self.noise_order == "reference" or self.dataloader_persistent_workers):
            raise UserError("draft cuts rows anew in each epoch; take dataloader_persistent_workers or noise_order out")

    def _check_noise(self) -> None:
        """Raises a UserError for switches of the noise and of the block sizes that exclude one another."""
        full = self.draft and self.draft_noise == "full"
        sizes = self.random_block_size or self.block_growth is not None
        begin, chosen = self.on_policy_from, "with own_states or on_policy_from the model says what is masked"
        asks, cut = begin is not None, "a draft begins with masks alone, and each copy is cut by itself"
        for wrong, what, why in (
            (self.mask_slope > 1, f"mask_slope={self.mask_slope}", "it is at most 1"),
            (self.mask_slope and full, "mask_slope", "a draft begins with masks alone; set draft_noise to random"),
            (self.own_states and full, "own_states", "a draft begins with masks alone; set draft_noise to random"),
            ((self.own_states or asks) and self.mask_slope, "mask_slope", chosen),
            ((self.own_states or asks) and self.complementary, "complementary", chosen),
            (self.draft and self.complementary, "complementary", cut),
            (full and self.noise_order != "permuted", f"noise_order {self.noise_order}", cut),
            (begin == 0 and self.own_states, "own_states", "with on_policy_from 0 all states are from own answers"),
            (not asks and "on_policy_tokens" in _changed(self), "on_policy_tokens", "it belongs to on_policy_from"),
            (asks and self.draft, "draft", "on_policy_from denoises blocks; use `diffusionvl draft` for drafts"),
            (asks and 0 < self.max_steps <= begin, f"on_policy_from={begin}", f"the run has {self.max_steps} steps"),
            (asks and sizes, "another block size", "on_policy_from decodes with the checkpoint's"),
            (asks and self.teacher_weight != 1, "teacher_weight", "an answer of the model's own is not a record's"),
            (sizes and self.noise_order == "reference", "noise_order reference", "it knows one block size"),
            (self.random_block_size and self.block_growth, "random_block_size", "block_growth says the sizes"),
            (self.growth_steps and not self.block_growth, "growth_steps", "it belongs to block_growth"),
        ):
            if wrong:
                raise UserError(f"{what} does not fit: {why}; take it out")
        if self.weighting == "mask_ratio" and (self.noise_order == "reference" or self.mask_slope):
            raise UserError(
                "weighting mask_ratio needs levels that are uniform for each block; not noise_order reference or "
                "mask_slope"
            )
        for name in NOISY:
            if self.objective == "ar" and name in _changed(self):
                raise UserError(f"{name} belongs to objective 'block_diffusion'; take it out for 'ar'")
        if self.block_growth is not None:
            self._check_growth(self.block_growth)

    def _check_growth(self, sizes: list[int]) -> None:
        """Raises a UserError for block sizes that do not grow, or that a run does not go through."""
        ascending = sorted({*sizes}) == sizes and len(sizes) > 1 and sizes[0] > 0
        if not ascending or any(sizes[-1] % size for size in sizes):
            raise UserError(
                f"block_growth must be ascending sizes that divide the last, such as [1, 4, 8]; got {sizes}"
            )
        lengths = self.growth_steps
        if lengths is None:
            return
        whole, shares = (sum(x for x in lengths if (x >= 1) == of_steps) for of_steps in (True, False))
        ends = whole / self.max_steps + shares if self.max_steps > 0 else shares
        if len(lengths) != len(sizes) - 1 or not all(0 < x < float("inf") for x in lengths) or ends >= 1:
            raise UserError(
                f"growth_steps must be the steps of each of the sizes {sizes[:-1]}, or their shares of the run, and "
                f"end before it does; got {lengths}"
            )

    def _check_stage(self, stage: str) -> None:
        """Raises a UserError if the recipe is for another stage."""
        check_choice("stage", stage, STAGES)
        if stage == "align" and self.train_modules != ["projector"]:
            raise UserError(f"stage 'align' trains the projector alone, got train_modules={self.train_modules}")
        if stage != "align" and (stage == "ar") != (self.objective == "ar"):
            raise UserError(f"stage {stage!r} does not fit objective={self.objective!r}; give the recipe's own stage")

    def _accumulation(self, processes: int) -> int:
        """The number of batches that make up `global_batch_size`.

        Raises:
            UserError: It is not a whole number, or another one was given.
        """
        assert self.global_batch_size is not None
        rows = self.per_device_train_batch_size * processes
        steps, rest = divmod(self.global_batch_size, rows)
        if steps < 1 or rest:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is not a multiple of per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {processes} processes = {rows}; change one of them"
            )
        if self.gradient_accumulation_steps not in (1, steps):
            raise UserError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} x {rows} rows is not "
                f"global_batch_size {self.global_batch_size}; leave it out"
            )
        return steps
