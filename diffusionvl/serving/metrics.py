"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..modeling.draft_canvas import DraftCanvas
from ..modeling.request import Request

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def named(name: str) -> str:
            return f"diffusionvl_{name}"

        self.waiting = Gauge(named("answers_waiting"), "Answers that wait for a row", registry=self.registry)
        self.running = Gauge(named("answers_running"), "Answers that have a row", registry=self.registry)
        self.responses = Counter(
            named("responses"),
            "Responses, by HTTP status; 499 for clients that left",
            ["status"],
            registry=self.registry,
        )
        self.answers = Counter(
            named("answers_ended"), "Answers that have ended, by reason", ["reason"], registry=self.registry
        )
        self.prompt_tokens = Counter(named("prompt_tokens"), "Tokens of prompts", registry=self.registry)
        self.reused_tokens = Counter(
            named("reused_prompt_tokens"), "Tokens of prompts that were not read again", registry=self.registry
        )
        self.answer_tokens = Counter(named("answer_tokens"), "Tokens of answers", registry=self.registry)
        self.forwards = Counter(
            named("forwards"), "Forwards, counted once for each answer in them", registry=self.registry
        )
        self.tokens_per_forward = Histogram(
            named("tokens_per_forward"), "Tokens of an answer by its forwards", buckets=TOKENS, registry=self.registry
        )
        self.accepted = Histogram(
            named("acceptance_length"),
            "Tokens that a step has written, where masks draft and the clean stream verifies",
            buckets=TOKENS,
            registry=self.registry,
        )
        self.first_block = Histogram(
            named("time_to_first_block_seconds"),
            "From the engine's taking a prompt to its answer's first block",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.next_block = Histogram(
            named("time_between_blocks_seconds"), "Between blocks", buckets=SECONDS, registry=self.registry
        )

    def block(self, seconds: float, first: bool) -> None:
        """Counts a block that came this number of seconds after the one before, or after the question."""
        (self.first_block if first else self.next_block).observe(seconds)

    def ended(self, request: Request) -> None:
        """Counts an answer that has ended."""
        self.answers.labels(reason=request.finish_reason).inc()
        self.prompt_tokens.inc(request.prompt_length)
        self.reused_tokens.inc(request.reused)
        self.answer_tokens.inc(len(request.tokens))
        self.forwards.inc(request.forwards)
        if request.forwards and request.tokens:
            self.tokens_per_forward.observe(len(request.tokens) / request.forwards)

        if isinstance(request.canvas, DraftCanvas):
            for length in request.canvas.lengths:
                self.accepted.observe(length)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)
