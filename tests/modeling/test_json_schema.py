"""JSON by schemas of many kinds: whatever random models write is valid, by another validator, or cut by its length."""

import itertools
import json
import random

import jsonschema
import pytest
from decoding_requests import DYNAMIC, seeded
from helpers import lively, prompts

from diffusionvl import Engine


def closed(required=None, **properties):
    """An object with these properties and no others."""
    needed = [*properties] if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


SHORT, DIGIT = {"type": "string", "maxLength": 4}, {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMAS = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -20, "maximum": 300},
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "number": {"type": "number", "minimum": 0.5, "maximum": 1.5},
    "several types": {"type": ["integer", "boolean", "null"], "minimum": 0, "maximum": 50},
    "string": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]{2}(-[0-9]{1,2})?$"},
    "pattern without anchors": {"type": "string", "pattern": "b[0-9]", "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "uuid": {"type": "string", "format": "uuid"},
    "enum": {"enum": ["a", 1, None, True, [1, {"b": 2}], 'é "quoted" \\ 😀']},
    "large enum": {"enum": [f"choice {number}" for number in range(400)]},
    "const": {"const": {"a": [1, 2.5, "x y"], "b": None}},
    "empty object": {"type": "object", "additionalProperties": False},
    "empty array": {"type": "array", "maxItems": 0},
    "array": {"type": "array", "items": DIGIT, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [DIGIT, SHORT], "items": False, "minItems": 2},
    "nested arrays": {"type": "array", "items": {"type": "array", "items": DIGIT, "maxItems": 2}, "maxItems": 2},
    "object": closed(a=DIGIT, b=SHORT),
    "optional": closed([], a=DIGIT, b=DIGIT, c={"type": "null"}),
    "some required": closed(["b"], a=DIGIT, b=DIGIT, c=DIGIT),
    "additional": {"type": "object", "properties": {"a": DIGIT}, "additionalProperties": DIGIT, "required": ["a"]},
    "property names": closed(**{"with space": DIGIT, "ünï": DIGIT, 'a"b': DIGIT, "": DIGIT}),
    "pattern properties": {"type": "object", "patternProperties": {"^k[0-9]$": DIGIT}, "additionalProperties": False},
    "any of": {"anyOf": [DIGIT, {"type": "boolean"}, closed(a=DIGIT)]},
    "one of": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 12}]},
    "references": {
        "$ref": "#/$defs/point",
        "$defs": {"point": closed(x={"$ref": "#/$defs/d"}, y={"$ref": "#/$defs/d"}), "d": DIGIT},
    },
    "recursion": {"$ref": "#/$defs/tree", "$defs": {"tree": closed(["v"], v=DIGIT, next={"$ref": "#/$defs/tree"})}},
    "recursion from the root": closed(["v"], v=DIGIT, next={"$ref": "#"}),
    "definitions": {"definitions": {"d": DIGIT}, "type": "array", "items": {"$ref": "#/definitions/d"}, "maxItems": 2},
    "no type": {"minimum": 0, "maximum": 9, "maxLength": 3, "maxItems": 1, "type": ["integer", "string"]},
    "titles and defaults": {"title": "T", "description": "d", "default": 1, "examples": [2], **DIGIT},
    "draft 4": {"$schema": "http://json-schema.org/draft-04/schema#", **closed(a=DIGIT)},
    "pydantic": {
        "$defs": {"Kind": {"enum": ["a", "b"], "title": "Kind", "type": "string"}},
        **closed(["kind"], kind={"$ref": "#/$defs/Kind"}, n={"anyOf": [DIGIT, {"type": "null"}], "default": None}),
    },
}
MODES = [
    {"decoding": "autoregressive"},
    {"decoding": "speculative", "draft_size": 4},
    {"decoding": "denoise", "denoising_steps": 2},
    {"decoding": "denoise", "remasking": DYNAMIC, "confidence_threshold": 0.1},
]


def check_answers(model, processor, count):
    """Answers `count` requests with schemas, modes and temperatures in turn; all are valid or cut by their length."""
    engine = Engine(model, 16, 400, tokenizer=processor.tokenizer)
    inputs, rng = [prompts(processor, (text,)) for text in ("hi", "what is in the image, and where?")], random.Random(0)
    names = itertools.cycle(SCHEMAS)
    ends = {"eos": 0, "length": 0}
    for begin in range(0, count, 16):
        asked = []
        for seed in range(begin, min(begin + 16, count)):
            name, mode = next(names), MODES[seed // len(SCHEMAS) % len(MODES)]
            settings = {**mode, "temperature": rng.choice([0.0, 1.0, 2.0]), "max_new_tokens": rng.choice([60, 120])}
            request = engine.add_request(
                **rng.choice(inputs), **settings, json_schema=SCHEMAS[name], generator=seeded(seed)
            )
            asked.append((name, request))
        while engine.busy:
            engine.step()
        for name, request in asked:
            assert request.error is None, name
            ends[request.finish_reason] += 1
            if request.finish_reason == "eos":
                text = processor.tokenizer.decode(request.tokens[:-1])
                jsonschema.validate(json.loads(text), SCHEMAS[name])
                if name == "pattern":
                    assert text.isascii()
    assert ends["eos"] > 0.7 * count, ends


def test_schemas_of_all_kinds(translated_dir, processor):
    check_answers(lively(translated_dir, block_size=8, clean_attention="causal"), processor, 2 * len(SCHEMAS))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [4, 8])
def test_a_thousand_answers_of_random_models(translated_dir, processor, block_size):
    check_answers(lively(translated_dir, block_size=block_size, clean_attention="causal"), processor, 1000)
