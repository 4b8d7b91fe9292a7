"""What templates write around a response: headers and the token that closes a turn, which need not be the eos."""

import pytest
import torch
from helpers import conversation
from tiny_families import build_tokenizer

from diffusionvl.checkpoints.text_processor import TextProcessor
from diffusionvl.data.chat_template import end_of_turn, response_header, response_header_ids
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError
from diffusionvl.data.streams import IGNORED
from diffusionvl.modeling.block_grid import block_starts

TURNS = "{% for m in messages %}{% set user = m['role'] == 'user' %}{% set text = m['content'] %}"
GEMMA = (
    TURNS + "{{ '<start_of_turn>' + ('user' if user else 'model') + '\n' + text + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
VICUNA = (
    TURNS + "{{ 'USER: ' + text + ' ' if user else 'ASSISTANT: ' + text + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = TURNS + "{{ '[INST] ' + text + ' [/INST]' if user else ' ' + text + '</s>' }}{% endfor %}"
# Closes no turn, as LLaVA 1.5's in transformers, and opens one with a special token.
LLAVA = (
    TURNS + "{{ '<s>USER: ' + text + ' ' if user else 'ASSISTANT: ' + text + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Writes thoughts into the last answer alone, as Qwen3's.
THINKING = (
    TURNS + "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ '<think>\n\n</think>\n\n' if not user and loop.last }}{{ text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(template, eos="<eos>", **special):
    tokens = {"start_of_turn": "<start_of_turn>", "end_of_turn": "<end_of_turn>", "end_of_question": "[/INST]"}
    tokens |= {"start_of_text": "<s>", "end_of_text": eos}
    tokenizer = build_tokenizer(template, **tokens, **special)
    tokenizer.eos_token = eos
    return TextProcessor(tokenizer)


@pytest.mark.parametrize(
    ("template", "eos", "token", "written"),
    [
        (GEMMA, "<eos>", "<end_of_turn>", True),
        (VICUNA, "</s>", "</s>", True),
        (MISTRAL, "</s>", "</s>", True),
        (LLAVA, "</s>", "</s>", False),
        (THINKING, "<eos>", "<|im_end|>", True),
    ],
)
def test_the_token_that_closes_a_turn(template, eos, token, written):
    processor = build(template, eos, im_end="<|im_end|>")
    found = end_of_turn(processor)
    assert (processor.tokenizer.convert_ids_to_tokens(found.token_id), found.written) == (token, written)


def test_a_template_and_a_tokenizer_without_an_end_are_refused():
    processor = build(LLAVA)
    processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no special token after a response.*set its eos_token"):
        end_of_turn(processor)


def test_a_template_that_knows_no_answers_is_refused():
    template = "{% if messages|length > 1 %}{{ raise_exception('questions only') }}{% endif %}"
    with pytest.raises(ValueError, match="cannot render a question and its answer: questions only"):
        end_of_turn(build(template))


@pytest.mark.parametrize(
    ("template", "text", "ids"),
    [
        (GEMMA, "<start_of_turn>model\n", "<start_of_turn>model\n"),
        (VICUNA, "ASSISTANT:", "ASSISTANT:"),
        (MISTRAL, "", " [/INST]"),
        (GEMMA.replace("{% if add_generation_prompt", "{% if false"), "", ""),
    ],
)
def test_the_header_of_a_response(template, text, ids):
    processor = build(template, "</s>")
    assert response_header(processor) == text
    assert processor.tokenizer.decode(response_header_ids(processor)) == ids


def test_a_header_that_is_cut_otherwise_in_a_prompt():
    """By itself it begins with the token `d`, in a prompt ` red` is one token."""
    template = (
        TURNS + "{{ text + ' re' if user else 'd:' + text + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'd:' }}{% endif %}"
    )
    processor = build(template, "</s>")
    assert response_header(processor) == "d:"
    assert processor.tokenizer.decode(response_header_ids(processor)) == " red:"


@pytest.mark.parametrize("template", [GEMMA, VICUNA, MISTRAL, THINKING], ids=["gemma", "vicuna", "mistral", "thinking"])
def test_every_response_is_supervised_up_to_its_end_and_starts_its_blocks(template):
    """One id, of the template, closes responses in the labels, the fill and the block grid."""
    processor = build(template, "</s>", im_end="<|im_end|>")
    encoder = ConversationEncoder(processor)
    end = end_of_turn(processor).token_id
    assert encoder.end_of_turn_id == end
    encoded = encoder.encode(conversation(("is it?", "no"), ("why?", "teal is blue"), ("what?", "yes")))
    supervised = encoded.labels != IGNORED
    begins = (supervised & ~torch.nn.functional.pad(supervised, (1, 0))[:-1]).nonzero()[:, 0].tolist()
    ends = (supervised & ~torch.nn.functional.pad(supervised, (0, 1))[1:]).nonzero()[:, 0].tolist()
    assert encoded.input_ids[ends].tolist() == [end] * 3
    texts = [
        processor.tokenizer.decode(encoded.input_ids[begin : stop + 1])
        for begin, stop in zip(begins, ends, strict=True)
    ]
    closing = processor.tokenizer.convert_ids_to_tokens(end)
    thoughts = "<think>\n\n</think>\n\n" if template == THINKING else ""
    assert [text.strip() for text in texts] == [f"no{closing}", f"teal is blue{closing}", f"{thoughts}yes{closing}"]
    starts = block_starts(encoded.input_ids.tolist(), encoder.header_ids, [end])
    assert starts == sorted([*begins, *(stop + 1 for stop in ends)])
    text = processor.apply_chat_template(
        conversation(("is it?", "no"), ("why?", "teal is blue"), ("what?", "yes")).messages, tokenize=False
    )
    assert text.startswith(processor.tokenizer.decode(encoded.input_ids))


def test_a_template_that_closes_no_turn_takes_one_answer():
    encoder = ConversationEncoder(build(LLAVA, "</s>"))
    encoded = encoder.encode(conversation(("is it?", "no")))
    assert encoder.tokenizer.decode(encoded.input_ids) == "<s>USER: is it? ASSISTANT: no </s>"
    with pytest.raises(DataError, match="puts no '</s>' after a response"):
        encoder.encode(conversation(("is it?", "no"), ("why?", "teal")))


def test_pictures_for_a_text_model_are_refused(pictures):
    encoder = ConversationEncoder(build(GEMMA))
    with pytest.raises(DataError, match=r"test: holds image .*reads text alone; take images and videos out"):
        encoder.encode(conversation(("is it?", "no", pictures[0])))
