"""Settings of a training run that say which model is trained, and on which records."""

from dataclasses import dataclass, field

from transformers.utils import is_peft_available

from ..data.record import SUPERVISIONS
from ..data.sources.records import KINDS
from ..modeling.errors import UserError

QUANTIZATIONS = ("4bit",)
LORA_ON = ("all", "noisy")
DTYPES = ("float32", "bfloat16", "auto")
ATTENTIONS = ("auto", "sdpa", "flex")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a UserError for a value that is not one of the known ones."""
    if value not in known:
        raise UserError(f"{name} must be one of {known}, got {value!r}")


@dataclass
class ModelArguments:
    """Which model is trained."""

    model: str = field(
        metadata={
            "help": "checkpoint folder or hub id: made by `diffusionvl translate` for block diffusion, or AR",
            "aliases": ["--model_name_or_path"],
        }
    )
    dtype: str = field(default="float32", metadata={"help": f"type of the weights, one of {DTYPES}"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run code from the model's folder or repository"})
    attention: str = field(
        default="auto",
        metadata={"help": f"of the language model, one of {ATTENTIONS}; auto is flex on a GPU and sdpa on a CPU"},
    )
    lora_r: int | None = field(default=None, metadata={"help": "rank of LoRA matrices; without it all is trained"})
    lora_alpha: int | None = field(default=None, metadata={"help": "their scale is lora_alpha / lora_r; 2 by default"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before them"})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "names of the linear layers that get them, such as q_proj; all by default"}
    )
    lora_on: str = field(
        default="all",
        metadata={"help": "noisy: a draft-only adapter, which acts on noisy tokens alone and leaves the base as it is"},
    )
    quantization: str | None = field(default=None, metadata={"help": "4bit: QLoRA, by bitsandbytes on an NVIDIA GPU"})

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("attention", self.attention, ATTENTIONS)
        if self.lora_r is not None and self.lora_r < 1:
            raise UserError(f"lora_r must be at least 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout}")
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)
        others = ("lora_alpha", "lora_dropout", "lora_target_modules", "quantization")
        given = [name for name in others if getattr(self, name)]
        if self.lora_r is not None and self.lora_on == "all" and not is_peft_available():
            raise UserError("lora_r needs PEFT; install it with `pip install 'diffusionvl[train]'`")
        if self.lora_r is None and given:
            raise UserError(f"{given[0]} does nothing without lora_r; give lora_r, such as 16")
        check_choice("lora_on", self.lora_on, LORA_ON)
        if self.lora_on == "noisy":
            if self.lora_dropout:
                raise UserError("lora_dropout is not used with lora_on 'noisy'; take it out")
            if self.lora_r is None:
                raise UserError("lora_on 'noisy' needs lora_r, the rank of the adapter; give one, such as 16")


@dataclass
class DataArguments:
    """Which records it is trained on, and how they become rows."""

    train_records: list[str] = field(metadata={"help": f"{KINDS}; or several"})
    eval_records: list[str] | None = field(default=None, metadata={"help": "the same, for the evaluation loss"})
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder that image paths start from and may not leave; the record file's by default"},
    )
    allow_web: bool = field(default=False, metadata={"help": "fetch pictures that are given by a web address"})
    max_length: int | None = field(default=None, metadata={"help": "longest clean stream in tokens; longer is cut"})
    supervision: str = field(default="assistant", metadata={"help": f"which tokens carry loss, of {SUPERVISIONS}"})
    packing: bool = field(default=False, metadata={"help": "put several records into a row"})
    pack_tokens: int = field(default=8192, metadata={"help": "packing: tokens of a row, clean and noisy ones"})
    pack_images: int = field(default=16, metadata={"help": "packing: images of a row"})
    noisy_views: int = field(default=1, metadata={"help": "noisy copies of the responses after one clean stream"})
    max_bad_samples: int = field(
        default=0, metadata={"help": "records that may be left out because they cannot be used; an error by default"}
    )

    def __post_init__(self) -> None:
        check_choice("supervision", self.supervision, SUPERVISIONS)
        for name in ("max_length", "pack_tokens", "pack_images", "noisy_views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.max_bad_samples < 0:
            raise UserError(f"max_bad_samples must be at least 0, got {self.max_bad_samples}")
