"""Answers in OpenAI's shapes, whole or as the chunks of a stream."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..modeling.logprobs import TokenLogprob
from ..modeling.request import FinishReason
from .engine_thread import Event
from .logprobs import Cursor, of_chat, of_completion
from .protocol import AnswerBody, ChatBody
from .service import Service
from .text import GrowingText

FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop_string": "stop",
    "length": "length",
    "time": "length",
    "criterion": "stop",
}
DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer so far.

    Attributes:
        growing: Turns its tokens into text.
        cursor: Finds where its tokens begin in the text.
        text: The text so far.
        tokens: The tokens so far.
        logprobs: What the model thought of each of them, where that is asked for.
        finish_reason: In OpenAI's words, once it has ended.
        forwards: Number of forwards that it has taken.
        reused: Number of prompt tokens that were not read again for it.
        drafted: Its tokens that may still change, None where masked.
    """

    growing: GrowingText
    cursor: Cursor
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    forwards: int = 0
    reused: int = 0
    drafted: list[int | None] = field(default_factory=list)

    def struck(self, event: Event) -> list[int]:
        """The drafts that an event has thrown away, from the first wrong one on."""
        drafted, self.drafted = self.drafted, [token for token, _ in event.draft or []]
        if not event.tokens or event.finish_reason is not None:
            return []
        right = 0
        while right < min(len(drafted), len(event.tokens)) and drafted[right] in (None, event.tokens[right]):
            right += 1
        return [token for token in drafted[right:] if token is not None]

    def take(self, event: Event, whole: bool = False) -> str:
        """Takes an event, and returns the text that it adds; where only the whole text counts, at the end alone."""
        self.tokens += event.tokens
        ended, new = event.finish_reason is not None, self.tokens if whole else event.tokens
        text = "" if whole and not ended else self.growing.add(new, ended)
        self.text += text
        self.logprobs += event.logprobs
        self.forwards, self.reused = event.forwards, event.reused
        if event.finish_reason is not None:
            self.finish_reason = FINISH_REASONS[event.finish_reason]
        return text


class Writer:
    """Writes the response to one request.

    Args:
        body: The request.
        service: Names the model, and decodes the answers.
        count: Number of answers.
        prompt_tokens: Number of tokens of the prompts.
    """

    def __init__(self, body: AnswerBody, service: Service, count: int, prompt_tokens: int) -> None:
        self.body, self.chat = body, isinstance(body, ChatBody)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": service.settings.name}
        self._tokenizer, self._spelling, self._prompt_tokens = service.tokenizer, service.spelling, prompt_tokens
        self.choices = [Choice(GrowingText(self._tokenizer, body.stops), Cursor(self._spelling)) for _ in range(count)]

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts and the answers; `forwards` is ours."""
        answers = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": answers,
            "total_tokens": self._prompt_tokens + answers,
            "prompt_tokens_details": {"cached_tokens": sum(choice.reused for choice in self.choices)},
            "forwards": sum(choice.forwards for choice in self.choices),
        }

    @property
    def ended(self) -> bool:
        """Whether all answers have ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def take(self, event: Event) -> None:
        """Takes an event of a response that is not a stream."""
        self.choices[event.choice].take(event, whole=True)

    def whole(self) -> dict[str, Any]:
        """The response that is not a stream, once all answers have ended."""
        choices = []
        for index, choice in enumerate(self.choices):
            content = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            choices.append(
                {
                    "index": index,
                    **(content if self.chat else {"text": choice.text}),
                    "logprobs": self._logprobs(choice, choice.tokens, choice.logprobs),
                    "finish_reason": choice.finish_reason,
                    **({"token_ids": choice.tokens} if self.body.return_token_ids else {}),
                }
            )
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage}

    def opening(self) -> bytes:
        """The chunks that come before any text: who speaks."""
        if not self.chat:
            return b""
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, delta=role) for index in range(len(self.choices)))

    def part(self, event: Event) -> bytes:
        """The chunks of an event: text, and at an answer's end a chunk with the reason."""
        choice, chunks = self.choices[event.choice], b""
        struck = choice.struck(event)
        text = choice.take(event)
        ours: dict[str, Any] = {"token_ids": event.tokens} if self.body.return_token_ids and event.tokens else {}
        if event.logprobs:
            ours["logprobs"] = self._logprobs(choice, event.tokens, event.logprobs)
        if struck:
            ours["struck"] = [self._text(token) for token in struck]
        if text or ours:
            chunks += self._chunk(event.choice, text=text, **ours)
        if event.draft:
            draft = [{"text": self._text(token), "confidence": round(sure, 4)} for token, sure in event.draft]
            chunks += self._chunk(event.choice, text="", draft=draft)
        if choice.finish_reason is not None:
            chunks += self._chunk(event.choice, delta={}, finish_reason=choice.finish_reason)
        return chunks

    def closing(self) -> bytes:
        """The chunks that come after all text."""
        if not self.body.include_usage:
            return DONE
        return self._sse({**self._head, "object": self._kind, "choices": [], "usage": self.usage}) + DONE

    def error(self, body: dict[str, Any]) -> bytes:
        """The last chunk of a stream that breaks off."""
        return self._sse(body)

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index: int, text: str = "", delta: Any = None, finish_reason: Any = None, **ours: Any) -> bytes:
        content = {"delta": {"content": text} if delta is None else delta} if self.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason, **ours}
        usage = {"usage": None} if self.body.include_usage else {}
        return self._sse({**self._head, "object": self._kind, "choices": [choice], **usage})

    def _logprobs(self, choice: Choice, tokens: list[int], entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """`logprobs` of tokens of a choice that follow those of earlier calls; None where it is not asked for."""
        if self.body.most_probable is None:
            return None
        if self.chat:
            return of_chat(self._spelling, tokens, entries)
        return of_completion(self._spelling, tokens, entries, choice.cursor)

    def _text(self, token: int | None) -> str | None:
        """A draft's text, which has none where it is masked."""
        return None if token is None else self._tokenizer.decode([token])

    @staticmethod
    def _sse(content: dict[str, Any]) -> bytes:
        """An event of a stream."""
        return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
