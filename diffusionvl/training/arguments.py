"""Arguments of a training run: three flat dataclasses, one YAML recipe, command-line overrides."""

import os
import warnings
from dataclasses import dataclass, field

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import is_peft_available

from ..data.record import SUPERVISIONS
from ..data.sources.records import KINDS
from ..modeling.errors import UserError
from ..objective.loss import NORMALIZERS, WEIGHTINGS
from ..objective.noise_schedule import NOISE_ORDERS
from .parts import PARTS

OBJECTIVES = ("block_diffusion", "ar")
QUANTIZATIONS = ("4bit",)
STAGES = ("ar", "align", "translate")
DTYPES = ("float32", "bfloat16", "auto")
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
}
ATTENTIONS = ("auto", "sdpa", "flex")


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} must be one of {known}, got {value!r}")


@dataclass
class ModelArguments:
    """Which model is trained."""

    model: str = field(
        metadata={"help": "checkpoint folder or hub id: made by `diffusionvl translate` for block diffusion, or AR"}
    )
    dtype: str = field(default="float32", metadata={"help": f"type of the weights, one of {DTYPES}"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run code from the model's folder or repository"})
    attention: str = field(
        default="auto",
        metadata={"help": f"of the language model, one of {ATTENTIONS}; auto is flex on a GPU and sdpa on a CPU"},
    )
    lora_r: int | None = field(default=None, metadata={"help": "rank of LoRA matrices; without it all is trained"})
    lora_alpha: int | None = field(default=None, metadata={"help": "their scale is lora_alpha / lora_r; 2 by default"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout in front of them"})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "names of the linear layers that get them, such as q_proj; all by default"}
    )
    quantization: str | None = field(default=None, metadata={"help": "4bit: QLoRA, by bitsandbytes on an NVIDIA GPU"})

    def __post_init__(self) -> None:
        _check("dtype", self.dtype, DTYPES)
        _check("attention", self.attention, ATTENTIONS)
        if self.lora_r is not None and self.lora_r < 1:
            raise UserError(f"lora_r must be at least 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout}")
        if self.quantization is not None:
            _check("quantization", self.quantization, QUANTIZATIONS)
        others = ("lora_alpha", "lora_dropout", "lora_target_modules", "quantization")
        given = [name for name in others if getattr(self, name)]
        if self.lora_r is not None and not is_peft_available():
            raise UserError("lora_r needs PEFT; install it with `pip install 'diffusionvl[train]'`")
        if self.lora_r is None and given:
            raise UserError(f"{given[0]} does nothing without lora_r; give lora_r, such as 16")


@dataclass
class DataArguments:
    """Which records it is trained on, and how they become rows."""

    train_records: list[str] = field(metadata={"help": f"{KINDS}; or several"})
    eval_records: list[str] | None = field(default=None, metadata={"help": "the same, for the evaluation loss"})
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder that image paths start from and may not leave; the record file's by default"},
    )
    max_length: int | None = field(default=None, metadata={"help": "longest clean stream in tokens; longer is cut"})
    supervision: str = field(default="assistant", metadata={"help": f"which tokens carry loss, of {SUPERVISIONS}"})
    packing: bool = field(default=False, metadata={"help": "put several records into a row"})
    pack_tokens: int = field(default=8192, metadata={"help": "packing: tokens of a row, clean and noisy ones"})
    pack_images: int = field(default=16, metadata={"help": "packing: images of a row"})
    noisy_views: int = field(default=1, metadata={"help": "noisy copies of the responses behind one clean stream"})
    max_bad_samples: int = field(
        default=0, metadata={"help": "records that may be left out because they cannot be used; an error by default"}
    )

    def __post_init__(self) -> None:
        _check("supervision", self.supervision, SUPERVISIONS)
        for name in ("max_length", "pack_tokens", "pack_images", "noisy_views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.max_bad_samples < 0:
            raise UserError(f"max_bad_samples must be at least 0, got {self.max_bad_samples}")


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
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the vision tower; that of the rest by default"}
    )
    train_modules: list[str] | None = field(
        default=None, metadata={"help": f"parts that are trained, of {PARTS}; all by default"}
    )
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "learning rate schedule"})
    warmup_steps: float = field(default=0.03, metadata={"help": "warm-up steps, or their share if below 1"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are no columns: keep this off"})
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
        default=None, metadata={"help": "what a device can do, for the MFU; known by name for common GPUs"}
    )
    sample_steps: int | None = field(default=None, metadata={"help": "steps between two tables of answers; none"})
    sample_count: int = field(default=4, metadata={"help": "answers in such a table"})
    dry_run: bool = field(default=False, metadata={"help": "tell shapes, steps and memory, and train nothing"})
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
        _check("objective", self.objective, OBJECTIVES)
        _check("normalizer", self.normalizer, NORMALIZERS)
        _check("noise_order", self.noise_order, NOISE_ORDERS)
        _check("weighting", self.weighting, WEIGHTINGS)
        if self.weighting == "mask_ratio" and self.noise_order == "reference":
            raise UserError(
                "weighting mask_ratio needs levels that are uniform for each block; not noise_order reference"
            )
        for module in self.train_modules or []:
            _check("train_modules", module, PARTS)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):  # NaN compares false
                raise UserError(f"{name} must be a number of at least {least}, got {value}")
        if self.stage is not None:
            self._check_stage(self.stage)
        if self.max_steps == 0:
            raise UserError("max_steps must be at least 1, or -1 to go by num_train_epochs; got 0")
        if not self.output_dir:
            raise UserError("output_dir is not set; give the folder for the trained model")
        self.report_to = self.report_to or "none"  # transformers takes None for the name of a service
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
        _check("stage", stage, STAGES)
        if stage == "align" and self.train_modules != ["projector"]:
            raise UserError(f"stage 'align' trains the projector alone, got train_modules={self.train_modules}")
        if stage != "align" and (stage == "ar") != (self.objective == "ar"):
            raise UserError(f"stage {stage!r} does not fit objective={self.objective!r}; give the recipe's own stage")

    def _accumulation(self, processes: int) -> int:
        """The number of batches that make up `global_batch_size`.

        Raises:
            ValueError: It is no whole number, or another one was given.
        """
        assert self.global_batch_size is not None
        rows = self.per_device_train_batch_size * processes
        steps, rest = divmod(self.global_batch_size, rows)
        if steps < 1 or rest:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is no multiple of per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {processes} processes = {rows}; change one of them"
            )
        if self.gradient_accumulation_steps not in (1, steps):
            raise UserError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} x {rows} rows is not "
                f"global_batch_size {self.global_batch_size}; leave it out"
            )
        return steps
