"""The progress bar."""

from typing import Any

from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

SHOWN = {
    "loss": "loss",
    "masked_accuracy": "acc",
    "accuracy": "acc",
    "mean_t": "t",
    "tokens_per_second": "tok/s",
    "truncated": "truncated",
    "dropped": "dropped",
}


class BlockDiffusionProgress(ProgressCallback):
    """Shows the last log behind the bar instead of a new line for each."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Updates the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            shown = {short: f"{logs[name]:.4g}" for name, short in SHOWN.items() if name in logs}
            self.training_bar.set_postfix(shown, refresh=False)
