"""The progress bar, and the last line of the log."""

from typing import Any

from transformers.trainer_callback import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

SHOWN = {
    "loss": "loss",
    "masked_accuracy": "acc",
    "accuracy": "acc",
    "mean_t": "t",
    "tokens_per_second": "tok/s",
    "truncated": "truncated",
    "dropped": "dropped",
    "eval_loss": "eval",
}


class BlockDiffusionProgress(ProgressCallback):
    """Shows the last log behind the bar instead of a new line for each."""

    def __init__(self) -> None:
        super().__init__()
        self._evaluation: dict[str, float] = {}  # stays until the next one, through many logs of training

    def close(self) -> None:
        """Closes the bar of a training that may have stopped on its way."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Updates the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "eval_loss" in logs:
            self._evaluation = {"eval_loss": logs["eval_loss"]}
        elif "loss" in logs:
            logs = logs | self._evaluation
            shown = {short: f"{logs[name]:.4g}" for name, short in SHOWN.items() if name in logs}
            self.training_bar.set_postfix(shown, refresh=False)


class LogLastStep(TrainerCallback):
    """Logs the last step, too, when it is no multiple of `logging_steps`."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a log."""
        if state.global_step >= state.max_steps:
            control.should_log = True
