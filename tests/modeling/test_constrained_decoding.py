"""Constrained answers in every way of decoding: in the language, alone or beside others, and in fewer forwards."""

import itertools
import json
import re

import jsonschema
import pytest
import torch
from decoding_requests import BOUNDED, DYNAMIC, LONG, drafts_are_often_right, seeded
from helpers import QUESTION, lively, prompts

from diffusionvl import Engine
from diffusionvl.modeling.batch import DecodingBatch
from diffusionvl.modeling.errors import UserError

SHAPES = ["circle", "rectangle", "triangle"]
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": SHAPES},
        "colours": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        "present": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["shape", "colours", "present", "count"],
    "additionalProperties": False,
}
CHOICES = ["yes", "yes, it is", "no", "é 😀, or so"]
CONSTRAINTS = [
    {"json_schema": SCHEMA},
    {"regex": "[a-c]{2,9}|(xy)+z"},
    {"choices": CHOICES},
    {"grammar": 'start: "(" start ")" | "x"'},
]
STOPS = {"grammar": 'start: part "!" part\npart[stop=","]: /[a-d]*/'}  # matchers of such grammars cannot go back
MODES = [
    {"decoding": "autoregressive"},
    {"decoding": "speculative"},
    {"decoding": "speculative", "draft_size": 5},
    {"decoding": "denoise"},
    {"decoding": "denoise", "denoising_steps": 3},
    {"decoding": "denoise", "denoising_steps": 1, "sub_block_size": 4},
    {"decoding": "denoise", "remasking": DYNAMIC, "confidence_threshold": 0.2},
    {"decoding": "denoise", "remasking": BOUNDED, "entropy_bound": 4.0},
]


@pytest.fixture(scope="module")
def model(translated_dir):
    return lively(translated_dir, block_size=8, clean_attention="causal")


@pytest.fixture(scope="module")
def block_model(translated_dir):
    """One whose answers go on in the prompt's last block."""
    return lively(translated_dir, block_size=8, block_origin="absolute")


def answer(model, processor, inputs, seed=0, **settings):
    settings = {"max_new_tokens": 80, **settings}
    output = model.generate(
        **inputs, **settings, generator=seeded(seed), tokenizer=processor.tokenizer, return_dict_in_generate=True
    )
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), int(output.forwards[0])


def fits(text, constraint):
    """Whether a whole text is in the language, by another reader of it."""
    if "json_schema" in constraint:
        jsonschema.validate(json.loads(text), constraint["json_schema"])
        return True
    if "grammar" in constraint:
        depth = text.count("(")
        return text == "(" * depth + "x" + ")" * depth
    return text in constraint["choices"] if "choices" in constraint else bool(re.fullmatch(constraint["regex"], text))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_what_has_ended_is_in_the_language(constraint, mode, model, block_model, processor, pictures):
    ended = 0
    questions = ("hi",), (QUESTION, pictures[1])
    for seed, (temperature, question) in enumerate(itertools.product((0.0, 1.5), questions)):
        for own in (model, block_model) if mode["decoding"] == "denoise" else (model,):
            tokens, forwards = answer(
                own, processor, prompts(processor, question), seed, **constraint, **mode, temperature=temperature
            )
            assert forwards <= len(tokens)
            if tokens[-1] == processor.tokenizer.eos_token_id:
                ended += 1
                assert fits(processor.tokenizer.decode(tokens[:-1]), constraint)
            else:
                assert len(tokens) == 80
    assert ended > 1


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.2}, {"temperature": 0.8, "top_k": 5}, {"verify_margin": 2.0}]
)
@pytest.mark.parametrize("constraint", [*CONSTRAINTS, STOPS])
def test_speculative_writes_what_autoregressive_does(constraint, settings, model, processor, pictures, monkeypatch):
    inputs = [prompts(processor, question) for question in ((LONG,), (QUESTION, pictures[2]))]
    settings = {**constraint, **settings}
    plain = [answer(model, processor, own, 3, **settings, decoding="autoregressive") for own in inputs]
    sizes = ({"draft_size": 2}, {"draft_size": 8}, {})
    for size in sizes:
        for own, (tokens, forwards) in zip(inputs, plain, strict=True):
            found = answer(model, processor, own, 3, **settings, **size, decoding="speculative")
            assert found[0] == tokens
            assert found[1] <= forwards or settings.get("verify_margin")
    truth = {
        tuple(own["input_ids"][0].tolist()): [*tokens, *[tokens[-1]] * 10]
        for own, (tokens, _) in zip(inputs, plain, strict=True)
    }
    drafts_are_often_right(monkeypatch, truth)
    for size in sizes:
        for own, (tokens, _) in zip(inputs, plain, strict=True):
            assert answer(model, processor, own, 3, **settings, **size, decoding="speculative")[0] == tokens


LETTERS = "abcd"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "regex", ["(ab|ba|cd)*d?", "a?b?c?d?[ab]{2}", "(a|bc|bcd){1,3}", "abc(d|a)?c*", "[a-d]{3}|aaaa"]
)
def test_where_drafts_are_sure_the_answer_is_what_a_search_of_all_texts_finds(
    regex, mode, model, processor, monkeypatch
):
    """The model's scores depend on the place alone, so that the best text is the first by the scores of its tokens."""
    tokenizer, generator = processor.tokenizer, seeded(0)
    ids, end = tokenizer.convert_tokens_to_ids([*LETTERS]), tokenizer.eos_token_id
    everywhere = ["".join(letters) for length in range(9) for letters in itertools.product(LETTERS, repeat=length)]
    language = [text for text in everywhere if re.fullmatch(regex, text)]
    inputs = prompts(processor, ("hi",))
    for _ in range(3):
        scores = torch.full((80, 512), -1e4)
        scores[:, [*ids, end]] = 30 * torch.randn(80, 5, generator=generator)
        scores[7:, end] = 1e4  # no text is longer than those that are searched

        def forward(batch, requests, spans, wanted, media, scores=scores):
            places = [
                target - request.prompt_length
                for request, columns in zip(requests, wanted, strict=True)
                for target in (request.canvas.targets if columns else [])
            ]
            return scores[places]

        monkeypatch.setattr(DecodingBatch, "_forward", forward)
        written = [[*tokenizer.convert_tokens_to_ids([*text]), end] for text in language]
        best = max(written, key=lambda tokens: [float(scores[place, token]) for place, token in enumerate(tokens)])
        assert answer(model, processor, inputs, regex=regex, **mode)[0] == best


def mixed_requests(processor, pictures):
    """Constrained and free requests of all modes, with ragged prompts: inputs, settings, seed."""
    questions = [("hi",), (LONG,), (QUESTION, pictures[0]), (QUESTION, pictures[2])]
    settings = [
        {**mode, **constraint, "temperature": temperature}
        for mode, (constraint, temperature) in zip(
            MODES * 2, itertools.cycle([*itertools.product([*CONSTRAINTS, {}], (0.0, 1.0))]), strict=False
        )
    ]
    for place, own in enumerate(settings):
        own["draft_size"] = own.get("draft_size", 3)
        own["max_new_tokens"] = [30, 7, 1, 60][place % 4]
    return [(prompts(processor, questions[place % 4]), own, place) for place, own in enumerate(settings)]


@pytest.mark.parametrize(
    "options", [{}, {"fused_commit": False}, {"static_shapes": True}, {"prefix_cache_tokens": 200}]
)
def test_a_row_gets_what_it_gets_alone(options, model, processor, pictures):
    requests = mixed_requests(processor, pictures)
    expected = [answer(model, processor, inputs, seed, **settings) for inputs, settings, seed in requests]
    engine = Engine(model, max_batch_size=5, max_length=200, tokenizer=processor.tokenizer, **options)
    found = [engine.add_request(**inputs, **own, generator=seeded(seed)) for inputs, own, seed in requests]
    ends = []
    while engine.busy:
        ends += [request for request in engine.step() if request.finished]
    engine.check_integrity()
    assert {*map(id, ends)} == {*map(id, found)}
    assert len(ends) == len(found)
    for request, (tokens, forwards) in zip(found, expected, strict=True):
        assert (request.error, request.tokens) == (None, tokens)
        assert request.forwards == forwards or options


def test_long_forced_texts_run_beside_rows_at_the_end_of_their_slots(model, processor):
    """A forward that reads many forced tokens pads the others, which have no room for that."""
    text = "there is no circle in the image and no triangle in it "
    constraint = {"regex": f"(a|b){text}(c|d)"}
    for static in (False, True):
        engine = Engine(model, 4, 72, tokenizer=processor.tokenizer, static_shapes=static)
        inputs, short = prompts(processor, ("hi",)), prompts(processor, ("a" * 20,))
        for mode in (MODES[0], MODES[2], MODES[3]):
            room = 72 - short["input_ids"].shape[1] - 8
            free = engine.add_request(**short, max_new_tokens=room, min_new_tokens=room, **mode)
            while len(free.tokens) < room - 10:
                engine.step()
            constrained = engine.add_request(**inputs, **constraint, **mode, max_new_tokens=50)
            while engine.busy:
                engine.step()
            assert re.fullmatch(constraint["regex"], processor.tokenizer.decode(constrained.tokens[:-1]))
            assert constrained.forwards <= 3
            alone = model.generate(**short, max_new_tokens=room, min_new_tokens=room, **mode)
            assert free.tokens == alone[0, short["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_forced_tokens_cost_no_forward(mode, model, processor):
    inputs = prompts(processor, ("hi",))
    tokens, forwards = answer(model, processor, inputs, choices=["only this text, over more than a block"], **mode)
    assert (forwards, processor.tokenizer.decode(tokens)) == (0, "only this text, over more than a block<|im_end|>")
    schema = {"type": "object", "properties": {"shape": {"const": "circle"}, "present": {"type": "boolean"}}}
    schema |= {"required": ["shape", "present"], "additionalProperties": False}
    tokens, forwards = answer(model, processor, inputs, json_schema=schema, **mode)
    assert forwards <= 2 < len(tokens) / 5
    assert processor.tokenizer.decode(tokens)[:31] == '{"shape": "circle", "present": '


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("most", [1, 2, 9, 20])
def test_an_answer_that_is_cut_begins_as_a_longer_one_and_ends_by_its_length(most, mode, model, processor):
    engine = Engine(model, 2, 200, tokenizer=processor.tokenizer)
    inputs = prompts(processor, (LONG,))
    request = engine.add_request(**inputs, json_schema=SCHEMA, max_new_tokens=most, **mode)
    while engine.busy:
        engine.step()
    assert (len(request.tokens), request.finish_reason) == (most, "length")
    if mode["decoding"] != "denoise":
        assert request.tokens == answer(model, processor, inputs, json_schema=SCHEMA, **mode)[0][:most]


@pytest.mark.parametrize("mode", MODES)
def test_stop_strings_minimal_lengths_and_processors_go_along(mode, model, processor):
    tokenizer, inputs = processor.tokenizer, prompts(processor, ("hi",))
    tokens, _ = answer(model, processor, inputs, json_schema=SCHEMA, stop_strings='"col', **mode)
    assert tokenizer.decode(tokens).partition('"col')[1:] in [('"col', rest) for rest in ("", "o", "our", "ou")]
    # The grammar ends before the shortest length: its end counts.
    tokens, _ = answer(model, processor, inputs, regex="[ab]{3}", min_new_tokens=20, **mode)
    assert tokens[-1] == tokenizer.eos_token_id
    assert re.fullmatch("[ab]{3}", tokenizer.decode(tokens[:-1]))
    tokens, _ = answer(model, processor, inputs, regex="[ab]*", min_new_tokens=20, max_new_tokens=30, **mode)
    assert len(tokens) > 20

    def nothing(ids, scores):
        return torch.full_like(scores, -torch.inf)

    tokens, _ = answer(model, processor, inputs, choices=CHOICES, logits_processor=[nothing], **mode)
    assert tokenizer.decode(tokens[:-1]) in CHOICES
    tokens, _ = answer(model, processor, inputs, choices=CHOICES, repetition_penalty=1.3, temperature=1.0, **mode)
    assert tokenizer.decode(tokens[:-1]) in CHOICES


@pytest.mark.parametrize("mode", MODES)
def test_streams_histories_and_log_probabilities_go_along(mode, model, processor):
    tokenizer, inputs = processor.tokenizer, prompts(processor, ("hi",))
    for constraint in (*CONSTRAINTS, {"choices": ["one text alone"]}):
        settings = {**constraint, **mode, "max_new_tokens": 40}
        tokens, _ = answer(model, processor, inputs, **settings)
        engine = Engine(model, 2, 200, tokenizer=tokenizer)
        request = engine.add_request(**inputs, **settings, output_history=True, top_logprobs=2)
        streamed = [token for chunk in engine.stream(request) for token in chunk.tokens]
        assert streamed == tokens == request.tokens
        assert len(request.logprobs) == len(tokens)
        free = request.constraint.free
        assert all((score.top != []) == (place in free) for place, score in enumerate(request.logprobs))
        assert all(score.logprob <= 0 for score in request.logprobs)
        known = {}
        for step in request.history:  # what a film shows as written is what is written
            for column, token, masked in zip(
                step.columns[0].tolist(), step.tokens[0].tolist(), step.masked[0].tolist(), strict=True
            ):
                if not masked and column >= request.prompt_length:
                    assert known.setdefault(column - request.prompt_length, token) == token
        assert [known[place] for place in range(len(tokens))] == tokens
        batch = {name: value.repeat(2, 1) for name, value in inputs.items()}
        output = model.generate(
            **batch, **settings, tokenizer=tokenizer, output_history=True, return_dict_in_generate=True
        )
        assert output.sequences[1, inputs["input_ids"].shape[1] :].tolist() == tokens


def test_samples_of_one_prompt_are_independent(model, processor):
    settings = {"regex": "[a-z]{8}", "temperature": 2.0, "num_return_sequences": 4, "decoding": "speculative"}
    inputs = prompts(processor, ("hi",))
    found = model.generate(**inputs, **settings, generator=seeded(0), tokenizer=processor.tokenizer)
    texts = processor.tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len({*texts}) > 1
    assert all(re.fullmatch("[a-z]{8}", text) for text in texts)


def test_a_request_whose_constraint_fails_ends_alone(model, processor):
    inputs, image = prompts(processor, ("hi",)), processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for mode in MODES:
        engine = Engine(model, 4, 200, tokenizer=processor.tokenizer)
        bad = engine.add_request(**inputs, regex="(x|y)((a{2,100}){9,100}){9,100}b", max_new_tokens=100, **mode)
        worse = engine.add_request(**inputs, grammar=f'start: ("a" | "b") <[{image}]>', max_new_tokens=9, **mode)
        good = engine.add_request(**inputs, choices=CHOICES, max_new_tokens=80, **mode)
        while engine.busy:
            engine.step()
        engine.check_integrity()
        assert good.tokens == answer(model, processor, inputs, choices=CHOICES, **mode)[0]
        for request in (bad, worse):
            assert isinstance(request.error, UserError), (request.finish_reason, request.tokens)


def test_a_constraint_needs_a_tokenizer(model, processor):
    inputs = prompts(processor, ("hi",))
    for constraint in (*CONSTRAINTS, {"json_object": True}):
        with pytest.raises(UserError, match="needs a tokenizer"):
            model.generate(**inputs, **constraint)
