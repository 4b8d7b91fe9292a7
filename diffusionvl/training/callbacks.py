"""Where a run reports to, its progress bar, the last line of its log, and stopping when the machine is taken away."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import torch
from accelerate.utils import reduce
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from ..modeling.errors import UserError

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


def check_trackers(names: list[str]) -> None:
    """Checks the names of services that a run reports to.

    Raises:
        UserError: One of them cannot be used.
    """
    for name in set(names) - {"none", "all"}:
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to {name!r} needs its package; `pip install {name}`, or set report_to to none")
        if name == "wandb" and os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun"):
            import wandb

            if not wandb.login(prompt=False):
                raise UserError("report_to 'wandb' needs a login; run `wandb login`, or set WANDB_MODE=offline")


class BlockDiffusionProgress(ProgressCallback):
    """Shows the last log after the bar instead of printing a line for each."""

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
    """Logs the last step, too, where it is not a multiple of `logging_steps`."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a log."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class SaveAndStopOnSigterm(TrainerCallback):
    """On SIGTERM, the notice of schedulers and clouds, ends the step, saves a checkpoint and stops training.

    One process that gets the signal stops all: they agree after every step. transformers' own `enable_jit_checkpoint`
    lets each process decide alone, in the middle of a step.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signalled = False
        self._before: Any = signal.SIG_DFL

    def on_train_begin(self, args: TrainingArguments, *_: Any, train_dataloader: Any, **kwargs: Any) -> None:
        """Starts to listen. Processes that load data ignore the signal, since their trainer ends them in its own time.

        multiprocessing would end by SIGTERM those that an error has left, and wait for them for ever.
        """
        self._before = signal.signal(signal.SIGTERM, self._note)
        Finalize(None, _end_loaders, exitpriority=0)
        loader = train_dataloader.base_dataloader  # accelerate's, around torch's own
        loader.worker_init_fn = partial(_deaf, loader.worker_init_fn)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a checkpoint and the end, if any process got the signal."""
        signalled = torch.tensor(float(self._signalled), device=args.device)
        if args.world_size > 1:
            signalled = reduce(signalled, "sum")
        if signalled > 0 and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Stops listening."""
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: Any) -> None:
        self._signalled = True


def _end_loaders() -> None:
    """Ends the processes that load data, when this process ends."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _deaf(init: Callable[[int], None], worker: int) -> None:
    """Starts a process that loads data."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    init(worker)
