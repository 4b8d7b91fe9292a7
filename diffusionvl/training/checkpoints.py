"""How the trainer saves checkpoints that are whole, and loads them by the names of their weights.

Everything else about the trainer is in `trainer.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints.checkpoint import Checkpoint, name_processor
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from .run_folder import SETTINGS_NAME, delete_old_checkpoints, seal, sync, unfinished


class CheckpointTrainer(Trainer):
    """transformers' Trainer with sealed checkpoints without pickles, in the names of `from_pretrained`.

    Attributes:
        settings: What a checkpoint records as the settings of its run; a resumed run is compared with them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings: dict[str, Any] = self.args.to_dict()
        self._run_dir = self.args.output_dir

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint: a folder of its own until all of it is there."""
        return self._run_dir

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As in transformers, with tied weights once and the settings as JSON in place of a pickle."""
        if state_dict is not None:  # ZeRO-2 gives copies, of which save_pretrained cannot see that they are tied
            ties = self.model.all_tied_weights_keys
            state_dict = {name: value for name, value in state_dict.items() if name not in ties}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
            Path(folder, SETTINGS_NAME).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            if isinstance(self.model.config, DiffusionVLConfig):
                name_processor(str(folder))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers; a checkpoint gets its name when it is whole and sealed, and only then old ones go."""
        out = self.args.output_dir
        final = Path(out, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        best = self.state.best_model_checkpoint
        with unfinished(out, self.args.should_save) as folder:
            self.accelerator.wait_for_everyone()
            self._run_dir = str(folder)
            super()._save_checkpoint(model, trial)
            self._run_dir = out
            self.args.save_total_limit = limit
            self.state.best_model_checkpoint = best  # transformers looks for it beside the unfinished one
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                written = folder / final.name
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                seal(written)
                shutil.rmtree(final, ignore_errors=True)  # a damaged one
                written.replace(final)
                sync(final.parent)
        if self.args.should_save:
            delete_old_checkpoints(out, limit, best)
        self.accelerator.wait_for_everyone()

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
        if isinstance(model, DiffusionVLForConditionalGeneration) and model.draft is not None:
            model.load_draft(resume_from_checkpoint)
            return
        model.load_state_dict(checkpoint.model(model.dtype).state_dict())

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
