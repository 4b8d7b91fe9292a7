"""The trainer: block diffusion or autoregression, on one kind of row.

Legend: B rows, T tokens of a row, M tokens with a loss.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.record import DataError
from ..modeling.errors import UserError
from ..objective.block_sizes import drawn_size, grown_size
from ..objective.loss import loss_counts
from .arguments import BlockDiffusionConfig
from .callbacks import BlockDiffusionProgress, LogLastStep
from .checkpoints import CheckpointTrainer
from .checks import check_objective, check_rows, settle_ar_weight
from .cost.flops import StepFlops, peak_of
from .dataset import RowDataset
from .losses import COUNTS, TokenLosses, autoregressive_loss, block_diffusion_loss, with_block_sizes
from .metrics import EvaluationLoss, TrainingMetrics
from .own_answers import with_own_answers
from .packed_dataset import EpochLengthGroupedSampler, PackedRowDataset, measure_rows
from .parameters import freeze_others, parameter_groups

NAMED_ROWS = 8  # of those that a message names


class BlockDiffusionTrainer(CheckpointTrainer):
    """transformers' Trainer with the block-diffusion objective, or the AR one over the same rows.

    Args:
        model: A `DiffusionVLForConditionalGeneration`, or an AR model for the AR objective.
        args: Settings; `ar_weight` gets a value if it has none.
        train_dataset: A `RowDataset` or a `PackedRowDataset`.
        teacher: An AR model that is learned from; it is neither trained nor saved.
        **kwargs: As in transformers.

    Raises:
        UserError: The objective does not fit the model, or nothing is left to train.
    """

    args: BlockDiffusionConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: BlockDiffusionConfig,
        train_dataset: RowDataset | PackedRowDataset | None = None,
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        check_objective(model.config, args)
        settle_ar_weight(model.config, args)
        if train_dataset is not None:
            check_rows(train_dataset, args)
        if args.train_modules is not None:
            freeze_others(model, args.train_modules)
        if train_dataset is not None:
            kwargs.setdefault("data_collator", train_dataset.collate)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        engine, found = "deepspeed" if args.deepspeed else "fsdp", self.accelerator.distributed_type.value.lower()
        if (args.deepspeed or args.fsdp) and found != engine:
            raise UserError(
                f"{engine} cannot be used here: accelerate would run {found!r} instead. fsdp needs GPUs; deepspeed "
                "on CPUs needs use_cpu=True and no ACCELERATE_USE_CPU in the environment"
            )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the count over the whole accumulated batch
        self.can_return_loss = True
        self.teacher = None if teacher is None else teacher.to(args.device)
        self.metrics = TrainingMetrics(args.device, peak_of(args.device, args.peak_tflops))
        self._flops = StepFlops(model)
        self._totals: dict[str, float] = defaultdict(float)  # of the whole run
        self._bad_before = 0.0  # bad samples of earlier epochs, which may be the same records
        if isinstance(train_dataset, PackedRowDataset):
            self._totals["bad_samples"] = train_dataset.bad_samples
        self._evaluation = EvaluationLoss()
        self._losses_of_step: list[Tensor] = []
        self._rows_of_step: list[Tensor] = []
        self._progress = BlockDiffusionProgress()
        self.add_callback(LogLastStep())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(self._progress)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; an error finds the progress bar closed, so that it is printed on a line of its own."""
        self.metrics.restart_clock()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which takes one step too many from a checkpoint of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self.train_dataset is not None:
            self.train_dataset.set_epoch(kwargs["epoch"])
        if kwargs["epoch"] > kwargs["epochs_trained"]:
            own = self.train_dataset.bad_samples if isinstance(self.train_dataset, PackedRowDataset) else 0
            self._bad_before = self._bad_samples() - own
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As in transformers; lengths are measured without decoding images."""
        rows = self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, RowDataset):
            return super()._get_train_sampler(train_dataset)
        args = self.args
        sizes = measure_rows(rows, args.dataloader_num_workers, args.process_index, args.world_size)
        rows_of_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return EpochLengthGroupedSampler(rows_of_a_step, sizes[:, 0].tolist(), seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """In order: the loss does not depend on it, and accelerate shares it out to the processes."""
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one batch: the weighted sum over its tokens, divided by the count over the accumulated batch."""
        if inputs["error"] is not None:
            raise inputs["error"]
        if self.args.objective == "block_diffusion":
            step = self.state.global_step if model.training else 0  # one noise for all evaluations, so losses compare
            mask_token_id = self.model.config.mask_token_id
            losses = block_diffusion_loss(model, inputs, self.args, mask_token_id, step, self.teacher)
        else:
            losses = autoregressive_loss(model, self.model, inputs, self.args)
        counts = loss_counts(inputs["labels"], self.args.normalizer, inputs["document_ids"])
        if model.training:
            self._measure(inputs, losses)
        else:
            self._evaluation.add(inputs, losses, counts)
        count = counts.sum() if num_items_in_batch is None else num_items_in_batch
        total = torch.stack([part.weighted.sum() for part in losses.parts()]).sum()
        loss = total / max(count, 1)  # 0 where truncation has emptied every row
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the gradients of the processes are averaged, not summed
        return (loss, {}) if return_outputs else loss

    def _measure(self, batch: dict[str, Any], losses: TokenLosses) -> None:
        """Adds a batch to the metrics of training."""
        self._rows_of_step.append(batch["rows"])
        self._operations = self._flops(batch, sum(len(part.tokens) for part in losses.parts()))
        self.metrics.add_batch(batch, losses)
        self.metrics.add(flops=self._operations)
        self._check_bad_samples()

    def floating_point_ops(self, inputs: dict[str, Any]) -> Any:
        """Operations of the last batch, which transformers sums in `total_flos`."""
        return self._operations

    def get_batch_samples(self, epoch_iterator: Iterator, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """As in transformers; rows first get the answers and block sizes of this step, which change their labels."""
        answered = map(self._with_own_answers, epoch_iterator)
        return super().get_batch_samples(map(self._with_block_sizes, answered), *args, **kwargs)

    def _with_own_answers(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of training with the model's own answers, from the step on from which it gives them."""
        begin, step, steps = self.args.on_policy_from, self.state.global_step, self.state.max_steps
        if begin is None or step < (begin if begin >= 1 else begin * steps):
            return batch
        rows = self.train_dataset.rows if isinstance(self.train_dataset, PackedRowDataset) else self.train_dataset
        batch, conversations = with_own_answers(self.model, rows, batch, self.args, step)
        for one in conversations:
            self.metrics.add(own_tokens=sum(map(len, one.answers)), own_forwards=one.forwards)
        return batch

    def _with_block_sizes(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of training with the block sizes of this step."""
        args, step, steps, config = self.args, self.state.global_step, self.state.max_steps, self.model.config
        rows, views = batch["rows"].tolist(), max(int(batch["stream_ids"].max()), 1)
        if args.random_block_size:
            least = 2 if args.draft else 1  # a draft's first mask drafts nothing
            # Where clean tokens see their block, all copies see the same blocks, and complements are cut alike.
            alike = views if config.clean_attention == "block" else 2 if args.complementary else 1
            drawn = [(args.seed, step, row, view // alike) for row in rows for view in range(views)]
            sizes = torch.tensor([drawn_size(config.block_size, least, *one) for one in drawn]).view(len(rows), -1)
        elif args.block_growth is not None:
            size = grown_size(args.block_growth, args.growth_steps, step, steps)
            sizes = torch.full((len(rows), views), size)
        else:
            return batch
        return with_block_sizes(batch, sizes, config.block_size, config.clean_attention == "causal")

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """What the loss of an accumulated batch is divided by, over all processes."""
        if not batch_samples:
            return None
        normalizer = self.args.normalizer
        count = sum(loss_counts(batch["labels"], normalizer, batch["document_ids"]).sum() for batch in batch_samples)
        count = torch.as_tensor(count, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def _check_bad_samples(self) -> None:
        """Stops when more samples were left out than is allowed: of this process at once, of all at each log."""
        allowed = self.train_dataset.max_bad_samples if self.train_dataset is not None else 0
        if allowed and self._bad_samples() - self._bad_before > allowed:
            raise DataError(f"more than max_bad_samples={allowed} samples cannot be used; mend the ones reported above")

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; the loss is kept until the end of the step, when it is checked."""
        loss = super().training_step(*args, **kwargs)
        self._losses_of_step.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        """As in transformers, between the backward passes of a step and its update: the place to stop a diverged run.

        Raises:
            UserError: The loss or the norm of the gradient is not finite, and no loss scale makes up for it.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss = torch.stack(self._losses_of_step).sum()
        scaled = self.accelerator.scaler is not None  # fp16 skips a step whose gradients overflow
        finite = math.isfinite(loss) and (scaled or norm is None or math.isfinite(norm))
        rows = [row for rows in self._rows_of_step for row in rows.tolist()] if not finite else []
        self._losses_of_step, self._rows_of_step = [], []
        if finite:
            return norm
        raise UserError(
            f"step {self.state.global_step + 1}: the loss is {float(loss):.4g} and the norm of its gradient "
            f"{float(norm or 0):.4g}; the run stops before this step is taken or saved. Its rows: {self._names(rows)}. "
            "Lower learning_rate, or look at these records; earlier checkpoints are whole"
        )

    def _names(self, rows: list[int]) -> str:
        """Where rows of the training data come from, for messages."""
        data = self.train_dataset.rows if isinstance(self.train_dataset, PackedRowDataset) else self.train_dataset
        names = [data.records[row].name for row in rows[:NAMED_ROWS]] if data is not None else []
        return ", ".join(names) + (f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else "")

    def _bad_samples(self) -> float:
        """Bad samples since the run began: of all processes up to the last log, of this one since."""
        return self._totals["bad_samples"] + self.metrics.sum_of("bad_samples")

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, which knows a norm by its name and so decays `norm1` and `ln_q`; here by its class."""
        norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
        return [name for name in super().get_decay_parameter_names(model) if name.rpartition(".")[0] not in norms]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Parameter groups: with and without weight decay, the vision tower at its own rate."""
        self.optimizer: torch.optim.Optimizer | None
        if self.optimizer is None and self.args.vision_learning_rate is not None:
            opt_model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(opt_model))
            groups = parameter_groups(opt_model, decayed, self.args.weight_decay, self.args.vision_learning_rate)
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, opt_model)
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return super().create_optimizer(model)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in transformers, with a loss that does not depend on how the data set is cut into batches."""
        self._evaluation.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._evaluation.loss(self.args.world_size)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; its time does not count in the tokens per second of training."""
        with self.metrics.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the steps since the last log, or, at the end, the counts of the whole run."""
        if "loss" in logs:
            logs |= self._metrics()
        elif "train_runtime" in logs:
            self._metrics()
            logs |= {name: count for name, count in self._totals.items() if count}
        super().log(logs, start_time)

    def _metrics(self) -> dict[str, float]:
        """Metrics since the last log, over all processes."""
        reduce = partial(self.accelerator.reduce, reduction="sum") if self.args.world_size > 1 else Tensor.clone
        logs, counts = self.metrics.collect(reduce, COUNTS)
        if self.args.objective == "block_diffusion":
            logs["masked_accuracy"] = logs.pop("accuracy")
        else:
            del logs["mean_t"], logs["noisy_tokens_per_second"]
        if counts["dropped"] and not logs["supervised_tokens_per_second"]:
            raise DataError(
                f"truncation left no supervised token in the last {counts['dropped']:.0f} samples, all there were; "
                "raise max_length"
            )
        for name in COUNTS:
            self._totals[name] += counts[name]
        self._check_bad_samples()
        return logs | {name: count for name, count in counts.items() if count}
