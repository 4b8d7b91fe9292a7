"""Settings of a training run beside model and records: transformers' own, and the objective's."""

import os
import warnings
from dataclasses import dataclass, field

import torch
from transformers import SchedulerType, TrainingArguments

from ..modeling.errors import UserError
from ..objective.distillation import DRAFT_NOISES, TARGETS
from ..objective.loss import NORMALIZERS, WEIGHTINGS
from ..objective.noise_schedule import NOISE_ORDERS
from .callbacks import check_trackers
from .model_arguments import check_choice
from .parts import PARTS
from .switches import changed, check_drafts, check_noise

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
        check_drafts(self)
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
        check_noise(self)
        if self.stage is not None:
            self._check_stage(self.stage)
        if self.max_steps == 0:
            raise UserError("max_steps must be at least 1, or -1 to go by num_train_epochs; got 0")
        if not self.output_dir:
            raise UserError("output_dir is not set; give the folder for the trained model")
        for name in UNUSED.keys() & changed(self):
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
