"""How a trainer saves checkpoints that are whole, and loads them by name.

Everything else of training is in `trainer.py`.
"""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..checkpoints.checkpoint import Checkpoint, name_processor
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from .run_folder import seal


class CheckpointTrainer(Trainer):
    """transformers' Trainer with sealed checkpoints without pickles, in the names of `from_pretrained`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arguments = self.args.to_json_string()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As in transformers, with tied weights once and the arguments as JSON in place of a pickle."""
        if state_dict is not None:  # ZeRO-2 gives copies, of which save_pretrained cannot tell that they are tied
            ties = self.model.all_tied_weights_keys
            state_dict = {name: value for name, value in state_dict.items() if name not in ties}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            pickled = Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
            pickled.unlink(missing_ok=True)
            pickled.with_suffix(".json").write_text(self._arguments + "\n", encoding="utf-8")
            if isinstance(self.model.config, DiffusionVLConfig):
                name_processor(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers; the checkpoint is sealed when it is whole, and only then older ones are deleted."""
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed has left
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder)
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        """Loads weights as `from_pretrained` does.

        Checkpoints hold the hub's names of a base's weights. transformers' own method compares them with the model's
        names as they are, and goes on with the weights that it did not find.
        """
        checkpoint = Checkpoint(resume_from_checkpoint)
        if (
            checkpoint.adapter_base is not None or self.is_deepspeed_enabled or self.is_fsdp_enabled
        ):  # they have checkpoints of their own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = self.model if model is None else model
        model.load_state_dict(checkpoint.model(model.dtype).state_dict())

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
