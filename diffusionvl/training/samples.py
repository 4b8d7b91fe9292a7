"""A table of answers during training, with their denoising, step by step."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from ..data.prompts import encode
from ..data.record import DataError, Record
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.request import DenoisingStep
from .dataset import RowDataset

MASK = "░"
MAX_NEW_TOKENS = 64


class AnsweredQuestion(NamedTuple):
    """One answer.

    Attributes:
        record: Where the question comes from.
        question: The last turn before the answer, as text.
        expected: The answer in the record.
        answer: What the model wrote.
        tokens_per_forward: Answer tokens a forward; 1 for an AR model.
        denoising: The answer after each step, masked tokens as `░`; empty for an AR model.
    """

    record: str
    question: str
    expected: str
    answer: str
    tokens_per_forward: float
    denoising: list[str]


def answer(model: PreTrainedModel, processor: ProcessorMixin, record: Record) -> AnsweredQuestion:
    """Answers the first question of a record, greedily; the random state is left alone.

    Args:
        model: In eval mode.
        processor: The model's.
        record: A conversation.
    """
    first = next(index for index, message in enumerate(record.messages) if message["role"] == "assistant")
    inputs = encode(processor, [Record(record.messages[:first], record.name)]).to(model.device)
    diffusion = isinstance(model.config, DiffusionVLConfig)
    greedy = {"temperature": 0.0, "output_history": True} if diffusion else {"do_sample": False}
    output = model.generate(**inputs, **greedy, max_new_tokens=MAX_NEW_TOKENS, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    tokenizer = processor.tokenizer
    return AnsweredQuestion(
        record.name,
        _text(record.messages[first - 1]),
        _text(record.messages[first]),
        tokenizer.decode(output.sequences[0, length:], skip_special_tokens=True).strip(),
        float(output.tokens_per_forward[0]) if diffusion else 1.0,
        denoising(output.history, tokenizer, length) if diffusion else [],
    )


def denoising(history: list[DenoisingStep], tokenizer: Any, prompt_length: int) -> list[str]:
    """The answer after each step, masked tokens as `░`.

    Args:
        history: Of a single prompt, [1, D] a step.
        tokenizer: The model's.
        prompt_length: Tokens of the prompt.
    """
    tokens: dict[int, int] = {}
    lines = []
    for step in history:
        columns = step.columns[0].tolist()
        tokens.update(zip(columns, step.tokens[0].tolist(), strict=True))
        ids = [tokens[column] for column in sorted(tokens) if column >= prompt_length]
        lines.append(tokenizer.decode(ids).replace(tokenizer.mask_token, MASK))
    return lines


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


class SampleTable(TrainerCallback):
    """Every `sample_steps` steps, answers the same questions and shows them where the run is watched.

    `output_dir/samples/` gets a file each time; wandb and trackio a table, TensorBoard a text. All processes answer,
    since with ZeRO-3 and FSDP2 the weights are spread over them; the first one writes.

    Args:
        trainer: The trainer of the run, whose trackers get the table.
        rows: The data set whose first questions are asked; records that it may leave out are passed over.
        count: Number of questions.

    Raises:
        DataError: A record cannot be used.
    """

    def __init__(self, trainer: Any, rows: RowDataset, count: int) -> None:
        self.trainer = trainer
        self.records: list[Record] = []
        for index in range(len(rows)):
            if len(self.records) == count:
                break
            try:
                rows.encoder.encode(rows.records[index])
            except DataError:
                if not rows.max_bad_samples:
                    raise
                continue
            self.records.append(rows.records[index])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Answers, if it is time."""
        if state.global_step % args.sample_steps:
            return
        with self.trainer.metrics.paused(), torch.no_grad():
            model.eval()
            samples = [answer(model, processing_class, record) for record in self.records]
            model.train()
        if state.is_world_process_zero:
            self._report(samples, Path(args.output_dir, "samples"), state.global_step)

    def _report(self, samples: list[AnsweredQuestion], folder: Path, step: int) -> None:
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"step": step, **sample._asdict()}, ensure_ascii=False) + "\n" for sample in samples)
        (folder / f"step-{step:06d}.jsonl").write_text(lines, encoding="utf-8")
        rows = [[step, *sample[:-1], "\n".join(sample.denoising)] for sample in samples]
        columns: list[str | int] = ["step", *AnsweredQuestion._fields]
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, WandbCallback):
                import wandb

                wandb.log({"samples": wandb.Table(columns, rows), "train/global_step": step})
            elif isinstance(callback, TrackioCallback):
                import trackio

                trackio.log({"samples": trackio.Table(columns, rows)})
            elif isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_text("samples", _markdown(columns, rows), step)


def _markdown(columns: list[str | int], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines: list[list[Any]] = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
