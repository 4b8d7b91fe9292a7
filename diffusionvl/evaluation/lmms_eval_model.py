"""The models that lmms-eval runs: they turn its requests into questions, and answers into its results."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from ..checkpoints.loading import find_device, load_model, load_processor
from ..data.prompts import encode
from ..modeling.errors import UserError
from . import AR
from .answerer import Answer, Answerer, Question, finish, numbered
from .card import write_card
from .costs import TaskCost, gather_processes
from .decoding import answer_batch
from .kinds import kind_of_checkpoint
from .likelihood import likelihood_bound, log_likelihood
from .questions import FORMS, Message, build_prompt, messages_of
from .settings import Decoding, check_names, resolve
from .showcase import make_film, spread

OPTIONS = (
    *("pretrained", "decode", "dtype", "prompt", "postprocess", "system_prompt", "seed", "fps", "max_frames"),
    *("likelihood_samples", "showcase", "showcase_samples"),
)


Messages = Callable[[], Sequence[Message]]  # images are opened when they are called for


@dataclass
class _Asked:
    """A request of lmms-eval in our own terms."""

    question: Question
    settings: dict[str, Any]  # the request's generation kwargs
    length: int  # characters of the context


class DiffusionVLChat(lmms):
    """The chat form of the model: tasks give messages, with images in their places.

    Args:
        pretrained: A block-diffusion or AR checkpoint.
        decode: `auto`, or the kind of checkpoint that is expected: `ar` or `block_diffusion`.
        device: A device such as cuda:0; one GPU for each process if left out, or the CPU where there is none.
        dtype: Type of the weights; the checkpoint's own by default.
        batch_size: Number of questions that are answered together.
        max_batch_size: Not supported; lmms-eval passes it.
        prompt: How prompts are written; see `build_prompt`.
        postprocess: How answers are cut; see `finish`.
        system_prompt: A text, or a file that holds one.
        seed: Seed of draws, and of the masks of likelihoods.
        fps: Frames that are taken from a second of video.
        max_frames: Most frames that are taken from a video.
        likelihood_samples: Number of masks by which the likelihood of a continuation is estimated.
        showcase: Folder for a few questions with images and answers.
        showcase_samples: Number of questions of each task that are kept there.
        **decoding: Settings that win over a task's own: max_new_tokens, denoising_steps, remasking, ...

    Raises:
        UserError: The checkpoint or a setting cannot be used.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        decode: str = "auto",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        prompt: str = "messages",
        postprocess: str = "none",
        system_prompt: str = "",
        seed: int = 0,
        fps: float = 2.0,
        max_frames: int = 64,
        likelihood_samples: int = 32,
        showcase: str | None = None,
        showcase_samples: int = 6,
        **decoding: Any,
    ) -> None:
        super().__init__()
        self._rank, self._world_size = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.batch_size = _whole("batch_size", batch_size)
        self.likelihood_samples = _whole("likelihood_samples", likelihood_samples)
        self.showcase, self.showcase_samples = showcase and Path(showcase), _whole("showcase_samples", showcase_samples)
        seed = _whole("seed", seed, least=0)
        if max_batch_size is not None:
            raise UserError(f"max_batch_size={max_batch_size}: batch sizes are not searched for; give --batch_size")
        if prompt not in FORMS:
            raise UserError(f"prompt must be one of {FORMS}, got {prompt!r}")
        finish("", (), postprocess)
        check_names(decoding, "model_args", OPTIONS)
        self.given = decoding
        self.kind, self.block_size = kind_of_checkpoint(str(pretrained), decode)
        resolve(self.kind, self.block_size, {}, decoding)
        self.device = _device(device)
        self.answerer = Answerer(
            load_model(str(pretrained), dtype).eval().to(self.device),
            load_processor(str(pretrained)),
            postprocess,
            seed,
        )
        self.prompt_form, self.system_prompt = prompt, self._resolve_system_prompt(system_prompt)
        self.frames = {"fps": float(fps), "max_frames": _whole("max_frames", max_frames)}
        self._warned: set[str] = set()

    @property
    def chat_template(self) -> str:
        """Refused: lmms-eval asks for it to write prompts itself, which would then be written twice."""
        raise UserError("the checkpoint's chat template is always applied; leave --apply_chat_template out")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers questions, those of one task and one way of decoding together."""
        asked = self._asked(requests)
        # lmms-eval pads a process's share with copies, which need no answer: processes do not wait for one another.
        real = [index for index, request in enumerate(requests) if not _is_padding(request)]
        answers = self._answer([asked[index] for index in real])
        results = [GenerationResult(text="")] * len(requests)
        for index, answer in zip(real, answers, strict=True):
            counts = TokenCounts(input_tokens=answer.input_tokens, output_tokens=answer.cost.tokens)
            results[index] = GenerationResult(text=answer.text, token_counts=counts)
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answers dialogues round by round; a task builds each round from the answers before it."""
        rounds: list[list[str]] = [[] for _ in requests]
        state: list[Any] = [None] * len(requests)
        running = {index: one for index, one in enumerate(self._asked(requests)) if not _is_padding(requests[index])}
        number = 0
        while running:
            for index, answer in zip(running, self._answer([*running.values()]), strict=True):
                rounds[index].append(answer.text)
            number += 1
            following = {}
            for index, one in running.items():
                messages, previous, state[index] = self._next_round(
                    requests[index], number, rounds[index], state[index]
                )
                if previous is not None:
                    rounds[index] = list(previous)
                if messages is not None:
                    asked = one.question
                    again = self._question(asked.task, asked.number, partial(_same, messages), asked.repeat)
                    following[index] = replace(one, question=again)
            running = following
        return rounds

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Returns negative log-likelihoods of continuations: exact for AR, else the bound of block diffusion.

        The evaluator of lmms-eval 0.7.3 takes the least of them, and wants the pair wrapped.
        """
        results = []
        for request in tqdm(requests, disable=self.rank != 0, desc="Scoring"):
            question, continuation = self._scored(request)
            inputs = encode(self.answerer.processor, [question.prompt().record])
            tokens = torch.tensor(
                self.answerer.processor.tokenizer(continuation.lstrip(), add_special_tokens=False)["input_ids"],
                dtype=torch.long,
            )
            if not len(tokens):
                raise UserError(f"{question.name}: the continuation {continuation!r} has no token to be scored")
            model: Any = self.answerer.model
            drafts = self.kind != AR and model.config.draft_adapter is not None
            if self.kind == AR or drafts:  # with drafts, the base alone decides what is written
                likelihood, greedy = log_likelihood(model.base if drafts else model, inputs, tokens)
            else:
                seed = self.answerer.seed
                likelihood = likelihood_bound(model, inputs, tokens, self.likelihood_samples, seed)
                decoded = answer_batch(model, inputs, max_new_tokens=len(tokens), temperature=0.0).new[0]
                greedy = decoded.tolist() == tokens.tolist()
            results.append(GenerationResult(text=(-likelihood, greedy)))
        return results

    def clean(self) -> None:
        """Logs what the answers have cost, once all processes are done, and frees the model."""
        costs = gather_processes(self.answerer.costs, self.world_size)
        if self.rank == 0 and costs:
            total = TaskCost(processes=self.world_size)
            for cost in costs.values():
                total.add(replace(cost, processes=0))
            metrics = total.metrics()
            if len(costs) > 1:
                for task, cost in costs.items():
                    metrics |= {f"{task}/{name}": value for name, value in cost.metrics().items()}
            tokens, seconds = int(metrics["generated_tokens"]), metrics["generate_seconds"]
            log_metrics(seconds, tokens, metrics["tokens_per_second"], metrics)
        del self.answerer
        super().clean()

    def _read(self, request: Instance) -> tuple[str, dict[str, Any], Messages, int, str]:
        """Reads context, generation kwargs, messages, document and task of a request."""
        context, doc_to_messages, settings, number, task, split = request.args
        return context, settings, lambda: doc_to_messages(self.task_dict[task][split][number]), number, task

    def _next_round(
        self, request: Instance, number: int, answers: list[str], state: Any
    ) -> tuple[Sequence[Message] | None, Sequence[str] | None, Any]:
        """Returns the messages of the next round or None, the answers so far as the task wants them, and its state."""
        _, doc_to_messages, _, document, task, split = request.args
        doc = self.task_dict[task][split][document]
        step = doc_to_messages(doc, round_idx=number, previous_output=list(answers), previous_round_info=state)
        messages, ended, previous, state = step
        return (None if ended else messages), previous, state

    def _scored(self, request: Instance) -> tuple[Question, str]:
        """Refuses: the chat form of lmms-eval makes no such requests."""
        raise UserError("lmms-eval scores continuations in its simple form only; add --force_simple")

    def _asked(self, requests: Sequence[Instance]) -> list[_Asked]:
        """Turns requests into questions, without opening images."""
        read = [self._read(request) for request in requests]
        repeats = numbered([(task, number) for _, _, _, number, task in read])
        return [
            _Asked(self._question(task, number, messages, repeat), settings, len(context))
            for (context, settings, messages, number, task), repeat in zip(read, repeats, strict=True)
        ]

    def _question(self, task: str, number: int, messages: Messages, repeat: int = 0) -> Question:
        """Returns a question whose prompt is written from lmms-eval's messages when its turn comes."""
        name = f"{task}, document {number}"
        options = (self.prompt_form, self.system_prompt, self.frames)
        return Question(task, number, lambda: build_prompt(messages(), name, *options), repeat)

    def _answer(self, asked: Sequence[_Asked]) -> list[Answer]:
        """Answers questions; the answers are in the order of the questions."""
        groups: dict[tuple[str, str], list[int]] = {}
        for index, one in enumerate(asked):
            settings = json.dumps(one.settings, sort_keys=True, default=str)
            groups.setdefault((one.question.task, settings), []).append(index)
        answers: dict[int, Answer] = {}
        with tqdm(total=len(asked), disable=self.rank != 0, desc="Answering") as bar:
            for (task, _), members in groups.items():
                decoding = resolve(self.kind, self.block_size, asked[members[0]].settings, self.given, task)
                self._warn(decoding)
                # Long ones first, so that memory runs out at once; those of one length need little padding.
                members = sorted(members, key=lambda index: -asked[index].length)
                questions = [asked[index].question for index in members]
                for place, answer in self.answerer.answers(questions, decoding, self.batch_size):
                    if isinstance(answer, UserError):
                        raise answer
                    answers[members[place]] = answer
                    bar.update()
                self._show(questions, [answers[index] for index in members], decoding)
        return [answers[index] for index in range(len(asked))]

    def _warn(self, decoding: Decoding) -> None:
        """Warns, once, of what is not done as it was asked for."""
        for note in decoding.notes:
            if note not in self._warned and self.rank == 0:
                logger.warning(note)
            self._warned.add(note)

    def _show(self, questions: Sequence[Question], answers: Sequence[Answer], decoding: Decoding) -> None:
        """Keeps a few questions of one task for the report."""
        if not self.showcase:
            return
        chosen = spread([question.number for question in questions], self.showcase_samples)
        for question, answer in zip(questions, answers, strict=True):
            if question.number in chosen and question.repeat == 0:
                film = make_film(self.answerer, question, decoding) if question.number == chosen[0] else ""
                write_card(self.showcase, question, answer.text, film)


class DiffusionVLSimple(DiffusionVLChat):
    """The simple form of the model: a document's images, then a text. It scores continuations, too."""

    is_simple = True

    def _read(self, request: Instance) -> tuple[str, dict[str, Any], Messages, int, str]:
        context, settings, doc_to_visual, number, task, split = _drop_doc_to_text(request.args)
        return context, settings, self._messages(context, doc_to_visual, task, split, number), number, task

    def _messages(self, context: str, doc_to_visual: Any, task: str, split: str, number: int) -> Messages:
        # Tasks without images have no such function.
        visuals = doc_to_visual if callable(doc_to_visual) else (lambda doc: None)
        return lambda: messages_of(context, visuals(self.task_dict[task][split][number]))

    def _next_round(
        self, request: Instance, number: int, answers: list[str], state: Any
    ) -> tuple[Sequence[Message] | None, Sequence[str] | None, Any]:
        _, _, _, doc_to_text, document, task, split = request.args
        doc = self.task_dict[task][split][document]
        step = doc_to_text(doc, previous_output=list(answers), round_idx=number, previous_round_info=state)
        visuals, context, ended, previous, state = step
        return (None if ended else messages_of(context, visuals)), previous, state

    def _scored(self, request: Instance) -> tuple[Question, str]:
        if len(request.args) == 2:  # the likelihood of a choice without its question
            context, continuation = request.args
            alone = partial(messages_of, context, None)
            return self._question(request.task_name, request.doc_id, alone), continuation
        context, continuation, doc_to_visual, number, task, split = request.args
        if callable(continuation):
            continuation = continuation(self.task_dict[task][split][number])
        messages = self._messages(context, doc_to_visual, task, split, number)
        return self._question(task, number, messages), str(continuation)


def _same(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def _drop_doc_to_text(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Drops the function that builds further rounds, which multi-round requests carry in the middle."""
    return (*arguments[:3], *arguments[-3:])


def _is_padding(request: Instance) -> bool:
    return bool((request.metadata or {}).get("__padding_only__"))


def _whole(name: str, value: Any, least: int = 1) -> int:
    if not str(value).isdigit() or int(value) < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _device(name: str | None) -> torch.device:
    """Returns the device of this process."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the collectives of NCCL read it
    return device
