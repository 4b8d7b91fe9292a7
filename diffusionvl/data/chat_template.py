"""What a chat template writes around a response, read off the template itself."""

from typing import Any, NamedTuple

from jinja2 import TemplateError

from ..modeling.errors import UserError

QUESTIONS = ("what is it?", "x")  # they end in different tokens
ANSWER, NEXT = "an answer", "a second question"


class EndOfTurn(NamedTuple):
    """The token that closes a response.

    Attributes:
        token_id: Its id.
        written: Whether the template itself writes it after every response. After the last one of a conversation it
            is added where the template writes none; the other responses could then not be told apart.
    """

    token_id: int
    written: bool


def with_opening(template: str, tokenizer: Any) -> str:
    """Makes a chat template write the beginning-of-sequence token, if the tokenizer adds one and the template does not.

    LLaVA 1.5's template leaves it to the tokenizer. Here the template writes all special tokens, since a conversation
    is tokenised in pieces; transformers adds nothing to a prompt that begins with the token.
    """
    opening = tokenizer.bos_token
    if opening is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return template
    return template if opening in template or "bos_token" in template else "{{ bos_token }}" + template


def check_template(processor: Any) -> None:
    """Checks that the chat template writes what a user says.

    Raises:
        UserError: It loses the text, or writes the list of parts itself.
    """
    (message,) = _chat(QUESTIONS[0])
    text = _render(processor, [message])
    if QUESTIONS[0] not in text or str(message["content"]) in text:
        raise UserError(f"the chat template writes {text!r} for the question {QUESTIONS[0]!r}")


def response_header(processor: Any) -> str:
    """What the chat template writes before a response when it is asked for one, such as `<|im_start|>assistant\\n`."""
    messages = _chat(QUESTIONS[0])
    return _render(processor, messages, add_generation_prompt=True)[len(_render(processor, messages)) :]


def response_header_ids(processor: Any) -> list[int]:
    """The ids before every response, as they stand in a prompt; empty if there are none.

    Some templates, such as Mistral's, write no header when they are asked for a response. The end of the user's turn,
    `[/INST]`, then takes its place, unless responses end in the same way.
    """
    tokenizer = processor.tokenizer
    prompts = [_render(processor, _chat(question), add_generation_prompt=True) for question in QUESTIONS]
    first, second = (tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts)
    same = 0
    while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
        same += 1
    header = tokenizer(response_header(processor), add_special_tokens=False)["input_ids"]
    if 0 < len(header) <= same and first[-len(header) :] == header:
        return header
    common = first[len(first) - same :]  # by itself, a header may be cut into other tokens than in a prompt
    return [] if end_of_turn(processor).token_id in common else common


def end_of_turn(processor: Any) -> EndOfTurn:
    """The token that closes a response: the first special token that the template writes after it.

    It need not be the tokenizer's end of sequence: Gemma closes turns with `<end_of_turn>`, and sequences with `<eos>`.
    If a template writes none, as LLaVA 1.5's does, the end of sequence is used.

    Raises:
        UserError: The template writes none, and the tokenizer has no end of sequence.
    """
    tokenizer = processor.tokenizer
    last = _special_ids(tokenizer, _render(processor, _chat(QUESTIONS[0], ANSWER)).rpartition(ANSWER)[2])
    if not last:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the chat template writes no special token after a response, and the tokenizer has no end-of-sequence "
                "token to put there; set its eos_token"
            )
        return EndOfTurn(tokenizer.eos_token_id, written=False)
    between = _render(processor, _chat(QUESTIONS[0], ANSWER, NEXT)).rpartition(NEXT)[0].rpartition(ANSWER)[2]
    return EndOfTurn(last[0], written=last[0] in _special_ids(tokenizer, between))


def _special_ids(tokenizer: Any, text: str) -> list[int]:
    """The special tokens in a text."""
    special = special_tokens(tokenizer)
    return [token_id for token_id in tokenizer(text, add_special_tokens=False)["input_ids"] if token_id in special]


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the tokenizer's special tokens, whether it has a name for them or not."""
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _chat(*texts: str) -> list[dict[str, Any]]:
    """Alternating messages of a user and an assistant."""
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": [{"type": "text", "text": text}]} for index, text in enumerate(texts)]


def _render(processor: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    try:
        return processor.apply_chat_template(messages, tokenize=False, **settings)
    except (TemplateError, TypeError) as error:  # a template of strings fails on the parts of a content
        raise UserError(f"the chat template cannot render a question and its answer: {error}") from error
