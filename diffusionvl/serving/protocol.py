"""The bodies of requests, in OpenAI's interface: what is known, what is harmless, and what is refused by name."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, Json, model_validator
from pydantic_core import PydanticCustomError

from .body import Body, contradiction
from .messages import Message
from .response_format import ResponseFormat

MOST_CHOICES = 128
MOST_LOGPROBS = 20
INTEGER = 2**31 - 1
# A smaller temperature divides scores beyond what 32 bits hold; 0 is the limit.
LEAST_TEMPERATURE = 1e-6


def _not_tiny(value: float | None) -> float | None:
    if value and value < LEAST_TEMPERATURE:
        raise PydanticCustomError("too_small", f"must be 0 or at least {LEAST_TEMPERATURE}")
    return value


Positive = Annotated[int, Field(ge=1, le=INTEGER)]
Token = Annotated[int, Field(ge=0, le=INTEGER)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_not_tiny)]


class StreamOptions(Body):
    """Options of a stream.

    Attributes:
        include_usage: Whether the last chunk holds the usage.
    """

    include_usage: bool = False

    harmless = {"include_obfuscation": [False]}


class AnswerBody(Body):
    """What requests for chats and for completions have in common.

    Attributes:
        model: The name that the server gives its model.
        max_tokens: Longest answer.
        temperature: 0 takes the most probable token.
        top_p: Draw among the fewest tokens that reach this probability.
        top_k: Draw among this number of most probable tokens; 0 or -1 for all.
        seed: Of the draws; choice i has `seed + i`.
        n: Number of answers to a prompt.
        stop: Texts that end an answer and do not belong to it.
        stream: Whether to send the answer while it is written.
        stream_options: Options of the stream.
        repetition_penalty: As in transformers.
        decoding: Way to decode, as in `generate`.
        draft_size: Number of masks that draft in speculative decoding.
        remasking: Policy that says which drafts a denoising step keeps.
        confidence_threshold: Probability above which dynamic remasking keeps a token.
        entropy_bound: Nats of entropy that entropy-bounded remasking spends in a step.
        denoising_steps: Steps a block.
        sub_block_size: Tokens of a block that are denoised together.
        regex: Regular expression that the whole answer matches.
        grammar: Grammar that the answer follows, as Lark writes it.
        choices: Texts of which the answer is one.
        json_schema: Schema that the answer follows as JSON.
        drafts: Whether the stream also carries the block after every denoising step.
        return_token_ids: Whether choices carry the ids of their tokens.
    """

    model: str | None = None
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=-1, le=INTEGER)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    decoding: str | None = None
    draft_size: Positive | None = None
    remasking: str | None = None
    confidence_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    entropy_bound: Annotated[float, Field(ge=0)] | None = None
    denoising_steps: Positive | None = None
    sub_block_size: Positive | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    json_schema: dict[str, Any] | None = None
    drafts: bool = False
    return_token_ids: bool = False
    user: str | None = None

    harmless = {"frequency_penalty": [0], "presence_penalty": [0], "logit_bias": [{}]}

    @model_validator(mode="after")
    def _check_stream(self) -> "AnswerBody":
        if not self.stream:
            for name, given in (("stream_options", self.stream_options is not None), ("drafts", self.drafts)):
                if given:
                    raise contradiction(name, "is for streams; give stream: true, too")
        return self

    @model_validator(mode="after")
    def _check_constraints(self) -> "AnswerBody":
        if len(self.constraints) > 1:
            first, second, *_ = self.constraints
            raise contradiction(second, f"constrains the same answer as {first}; give one of them")
        return self

    @property
    def constraints(self) -> dict[str, dict[str, Any]]:
        """What constrains the answer, as settings of `Engine.add_request`, by the request's fields."""
        given = {name: getattr(self, name) for name in ("regex", "grammar", "choices", "json_schema")}
        return {name: {name: value} for name, value in given.items() if value is not None}

    @property
    def count(self) -> int:
        """Number of answers to a prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def longest(self) -> int | None:
        """Longest answer that the request asks for."""
        return self.max_tokens

    @property
    def most_probable(self) -> int | None:
        """Number of most probable tokens that come with each token of the answer; None for no log-probabilities."""
        return None

    @property
    def engine_settings(self) -> dict[str, Any]:
        """Settings that were given, as `Engine.add_request` takes them."""
        names = ("temperature", "top_p", "remasking", "confidence_threshold", "entropy_bound", "denoising_steps")
        more = ("sub_block_size", "decoding", "draft_size", "repetition_penalty")
        settings = {name: getattr(self, name) for name in (*names, *more)}
        settings |= {"max_new_tokens": self.longest, "stop_strings": self.stops or None}
        settings["top_logprobs"] = self.most_probable
        for constraint in self.constraints.values():
            settings |= constraint
        if self.top_k is not None:
            settings["top_k"] = max(self.top_k, 0)
        return {name: value for name, value in settings.items() if value is not None}


class TransformersSettings(Body):
    """A generation config of transformers, as far as it has a counterpart here."""

    max_new_tokens: Positive | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Token | None = None
    transformers_version: str | None = None

    @property
    def engine_settings(self) -> dict[str, Any]:
        """Settings that were given, as `Engine.add_request` takes them."""
        settings = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        if not self.do_sample:
            return {**settings, "temperature": 0.0}
        drawing = {"temperature": self.temperature or 1.0, "top_p": self.top_p, "top_k": self.top_k}
        return {**settings, **{name: value for name, value in drawing.items() if value is not None}}


class ChatBody(AnswerBody):
    """The body of `POST /v1/chat/completions`.

    Attributes:
        messages: The chat so far.
        max_completion_tokens: The newer name of `max_tokens`.
        response_format: Form of the answer.
        logprobs: Whether choices carry the log-probability of each token.
        top_logprobs: Number of most probable tokens beside each token; needs `logprobs`.
        generation_config: Settings as transformers' chat command sends them; fields of their own come first.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    generation_config: Json[TransformersSettings] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    harmless = {
        **AnswerBody.harmless,
        "tools": [[]],
        "tool_choice": ["none", "auto"],
        "functions": [[]],
        "function_call": ["none", "auto"],
        "modalities": [["text"]],
        "audio": [],
        "prediction": [],
        "reasoning_effort": ["none"],
        "verbosity": ["medium"],
        "web_search_options": [],
        "service_tier": ["auto", "default"],
        "store": [False],
    }

    @model_validator(mode="after")
    def _check_lengths(self) -> "ChatBody":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise contradiction("max_completion_tokens", "differs from max_tokens; give one of them")
        if self.messages[-1].role == "assistant":
            raise contradiction("messages", "must end with a turn of the user")
        if self.top_logprobs and not self.logprobs:
            raise contradiction("top_logprobs", "needs logprobs; give logprobs: true, too")
        return self

    @property
    def most_probable(self) -> int | None:
        """Number of most probable tokens that come with each token of the answer; None for no log-probabilities."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def constraints(self) -> dict[str, dict[str, Any]]:
        """What constrains the answer, as settings of `Engine.add_request`, by the request's fields."""
        own = {} if self.response_format is None else self.response_format.constraint
        return {**super().constraints, **({"response_format": own} if own else {})}

    @property
    def longest(self) -> int | None:
        """Longest answer that the request asks for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def engine_settings(self) -> dict[str, Any]:
        """Settings that were given, as `Engine.add_request` takes them."""
        own = super().engine_settings
        return own if self.generation_config is None else {**self.generation_config.engine_settings, **own}


class CompletionBody(AnswerBody):
    """The body of `POST /v1/completions`.

    Attributes:
        prompt: A text, its token ids, or a list of either.
        logprobs: Number of most probable tokens that come, with their log-probabilities, beside each token's own.
    """

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: Logprobs | None = None

    harmless = {**AnswerBody.harmless, "best_of": [1], "echo": [False], "suffix": [""]}

    @model_validator(mode="after")
    def _check_prompts(self) -> "CompletionBody":
        if not 1 <= len(self.prompts) <= MOST_CHOICES:
            raise contradiction("prompt", f"must hold 1 to {MOST_CHOICES} prompts")
        return self

    @property
    def most_probable(self) -> int | None:
        """Number of most probable tokens that come with each token of the answer; None for no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]
