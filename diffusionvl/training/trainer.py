"""The trainer: block diffusion or autoregression, on one kind of row.

Legend: B rows, T tokens of a row, M tokens with a loss.
"""

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.record import DataError
from ..modeling.attention import layer_masks
from ..modeling.block_masks import CLEAN, PADDING, TokenTags
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import fixed_inputs, layer_windows, mask_inputs
from ..modeling.modeling_diffusionvl import head_on
from ..objective.corruption import corrupt, level_ids
from ..objective.loss import IGNORED, cross_entropy, loss_counts, noise_weights, token_weights
from .arguments import BlockDiffusionConfig
from .callbacks import BlockDiffusionProgress, LogLastStep
from .checkpoints import CheckpointTrainer
from .cost.flops import StepFlops, peak_of
from .dataset import RowDataset
from .metrics import EvaluationLoss, TrainingMetrics
from .packed_dataset import EpochLengthGroupedSampler, PackedRowDataset, measure_rows
from .parameters import freeze_others, parameter_groups

COUNTS = ("truncated", "dropped", "bad_samples")
ROW_INFO = ("labels", "rows", *COUNTS)  # what a batch holds besides the model's inputs


class BlockDiffusionTrainer(CheckpointTrainer):
    """transformers' Trainer with the block-diffusion objective, or the AR one over the same rows.

    Args:
        model: A `DiffusionVLForConditionalGeneration`, or an AR model for the AR objective.
        args: Settings.
        train_dataset: A `RowDataset` or a `PackedRowDataset`.
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
        **kwargs: Any,
    ) -> None:
        check_objective(model.config, args.objective)
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
        self.metrics = TrainingMetrics(args.device, peak_of(args.device, args.peak_tflops))
        self._flops = StepFlops(model)
        self._totals: dict[str, float] = defaultdict(float)  # of the whole run
        if isinstance(train_dataset, PackedRowDataset):
            self._totals["bad_samples"] = train_dataset.bad_samples
        self._evaluation = EvaluationLoss()
        self._progress = BlockDiffusionProgress()
        self.add_callback(LogLastStep())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(self._progress)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; an error finds the progress bar closed, so that it is told on a line of its own."""
        self.metrics.restart_clock()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which takes one step too many from a checkpoint of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
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
        info = {name: inputs[name] for name in ROW_INFO}
        inputs = {name: value for name, value in inputs.items() if name not in ROW_INFO}
        step = self._diffusion_loss if self.args.objective == "block_diffusion" else self._ar_loss
        tokens, losses = step(model, inputs, info)
        documents = inputs["document_ids"]
        counts = loss_counts(info["labels"], self.args.normalizer, documents)
        if not model.training:
            sums = torch.zeros(len(counts), device=losses.device).index_add(0, documents.flatten()[tokens], losses)
            self._evaluation.add(info["rows"], sums, counts)
        count = counts.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / max(count, 1)  # 0 where truncation has emptied every row
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the gradients of the processes are averaged, not summed
        if model.training:
            self._tell(inputs, info, len(tokens))
        return (loss, {}) if return_outputs else loss

    def _diffusion_loss(
        self, model: nn.Module, inputs: dict[str, Any], info: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Masked tokens, as indices into the flattened batch, and the weighted cross-entropy of each.

        BD3-LM, equation 8; without a label shift.
        """
        labels, documents = info["labels"], inputs["document_ids"]
        supervised = labels != IGNORED
        noisy = corrupt(
            inputs["input_ids"],
            supervised,
            inputs["block_ids"],
            self.model.config.mask_token_id,
            self.args.seed,
            self.state.global_step if model.training else 0,  # one noise for every evaluation: losses compare
            info["rows"].tolist(),
            self.args.noise_order,
            documents,
            inputs["stream_ids"],
            self.args.complementary,
        )
        indices = noisy.masked.flatten().nonzero()[:, 0]
        logits = model(**{**inputs, "input_ids": noisy.x_t}, token_indices=indices, use_cache=False).logits
        targets = labels.flatten()[indices]
        weights = token_weights(labels, self.args.normalizer, documents).flatten()[indices]
        t = noisy.t.flatten()[indices]
        losses = cross_entropy(logits, targets)
        if model.training:
            self.metrics.add_predictions(logits, targets)
            self.metrics.add_noise(losses, t)
            self.metrics.add(t=noisy.t.sum())
        levels = level_ids(inputs["block_ids"], self.args.noise_order)
        by_noise = noise_weights(noisy, self.args.weighting, supervised, levels, documents, inputs["stream_ids"])
        return indices, losses * weights * by_noise.flatten()[indices]

    def _tell(self, inputs: dict[str, Any], info: dict[str, Tensor], logits: int) -> None:
        """Adds a batch to the metrics of training."""
        real, clean = inputs["document_ids"] != PADDING, inputs["stream_ids"] == CLEAN
        self._operations = self._flops(inputs, logits)
        self.metrics.add(
            **{name: info[name] for name in COUNTS},
            clean=(real & clean).sum(),
            noisy=(real & ~clean).sum(),
            supervised=(info["labels"] != IGNORED).sum(),
            flops=self._operations,
        )
        self._check_bad_samples()

    def floating_point_ops(self, inputs: dict[str, Any]) -> Any:
        """Operations of the last batch, which transformers sums in `total_flos`."""
        return self._operations

    def _ar_loss(self, model: nn.Module, inputs: dict[str, Any], info: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Supervised tokens, as indices into the flattened batch, and the weighted cross-entropy of each.

        Each is predicted by the token before it.
        """
        labels, documents = info["labels"], inputs["document_ids"]
        positions = inputs["position_ids"]
        supervised = (labels != IGNORED).flatten().nonzero()[:, 0]  # never the first token of a row
        if len(info["rows"]) > len(labels):  # packed: a mask of one's own keeps documents apart
            tags = TokenTags(inputs["block_ids"], inputs["stream_ids"], documents)
            mask = layer_masks(self.model, layer_windows(self.model.config), tags, positions[0], positions[0])
        else:
            mask = (documents != PADDING).long()
        with head_on(self.model, supervised - 1):
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=mask,
                position_ids=positions[0] if positions.shape[0] == 1 else positions,
                use_cache=False,
                **mask_inputs(self.model.config, inputs["input_ids"]),
                **fixed_inputs(self.model.config),
                **{name: value for name, value in inputs.items() if name not in CLEAN_TAGS},
            ).logits[0]
        targets = labels.flatten()[supervised]
        if model.training:
            self.metrics.add_predictions(logits, targets)
        weights = token_weights(labels, self.args.normalizer, documents).flatten()[supervised]
        return supervised, cross_entropy(logits, targets) * weights

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
        if allowed and self._totals["bad_samples"] + self.metrics.sum_of("bad_samples") > allowed:
            raise DataError(f"more than max_bad_samples={allowed} samples cannot be used; mend the ones told above")

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, which tells a norm by its name and so decays `norm1` and `ln_q`; here by its class."""
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
        """Adds what the steps since the last log tell, or, at the end, the counts of the whole run."""
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


CLEAN_TAGS = ("input_ids", "block_ids", "stream_ids", "document_ids", "position_ids", "media_twins")


def check_objective(config: PreTrainedConfig, objective: str) -> None:
    """Raises a UserError if the objective does not fit the model."""
    if isinstance(config, DiffusionVLConfig) != (objective == "block_diffusion"):
        raise UserError(
            f"objective={objective!r} does not fit a {config.model_type!r} model; "
            "block diffusion needs a checkpoint made by `diffusionvl translate`, AR an AR model"
        )


def check_rows(dataset: RowDataset | PackedRowDataset, args: BlockDiffusionConfig) -> None:
    """Refuses settings that rows do not fit.

    Raises:
        UserError: They do not.
    """
    packed = isinstance(dataset, PackedRowDataset)
    rows = dataset.rows if isinstance(dataset, PackedRowDataset) else dataset
    if args.complementary and rows.views % 2:
        raise UserError(f"complementary needs views in pairs, got noisy_views={rows.views}; set noisy_views to 2")
    if args.objective == "ar" and rows.views != 1:
        raise UserError(f"noisy_views={rows.views} needs objective block_diffusion; AR has no noisy rows")
    if args.noise_order == "reference" and (packed or rows.views > 1):
        raise UserError("noise_order reference is that of unpacked rows with one view; take packing or noisy_views out")
    strategy = args.train_sampling_strategy
    if strategy == "batch_rebalance" or (packed and strategy == "group_by_length"):
        raise UserError(
            f"train_sampling_strategy {strategy!r} does not fit these rows; take it out, or use packing alone"
        )
