"""Answers in a form that the request asks for: `response_format`, and constraints of our own."""

import json
import time
from typing import Literal

import openai
import pytest
from pydantic import BaseModel
from serving_helpers import NAME, chat, chunks, generated, half_a_request, serving

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}


class Shape(BaseModel):
    color: Literal["red", "blue"]
    count: Literal[1, 2, 3]


def assert_fits(text):
    found = json.loads(text)
    assert found.keys() == {"color", "count"}
    assert found["color"] in ("red", "blue")
    assert found["count"] in range(10)


@pytest.mark.parametrize("seed", [None, 1])
def test_json_follows_the_schema_and_is_generates(server, model, processor, seed):
    sampling = {} if seed is None else {"temperature": 1.5}
    _, expected = generated(model, processor, "hi", seed=seed, json_schema=SCHEMA, max_new_tokens=64, **sampling)
    body = chat(response_format=FORMAT, max_tokens=64, seed=seed, **sampling)
    choice = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    assert_fits(expected)
    with server.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        events = [event["choices"][0] for event in chunks(response)]
    assert "".join(event["delta"].get("content", "") for event in events) == expected
    assert events[-1]["finish_reason"] == "stop"


def test_an_answer_that_is_cut_says_so(server):
    choice = server.chat(response_format=FORMAT, max_tokens=5).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert '{"color": '.startswith(choice["message"]["content"][:10])


def test_openais_client_parses_into_pydantics_models(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}
        answer = client.chat.completions.parse(**asked, response_format=Shape)
        assert isinstance(answer.choices[0].message.parsed, Shape)
        with client.chat.completions.stream(**asked, response_format=Shape) as events:
            assert events.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed
        choices = ["circle", "square"]
        answer = client.chat.completions.create(**asked, extra_body={"choices": choices})
        assert answer.choices[0].message.content in choices
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**{**asked, "max_tokens": 3}, response_format=Shape)
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(**asked, extra_body={"regex": "("})
        assert error.value.param == "regex"


def test_every_constraint_and_completions(server):
    assert server.chat(regex="[ab]{3}", max_tokens=9).json()["choices"][0]["message"]["content"].strip("ab") == ""
    grammar = 'start: "yes" | "no" | "no, " start'
    said = server.chat(grammar=grammar, max_tokens=60).json()["choices"][0]["message"]["content"]
    assert set(said.replace(",", "").split()) <= {"yes", "no"}
    body = {"prompt": "is there", "json_schema": SCHEMA, "max_tokens": 64, "logprobs": 1}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert_fits(choice["text"])
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])
    text = server.chat(response_format={"type": "json_object"}, max_tokens=8).json()["choices"][0]["message"]["content"]
    assert text.startswith("{")
    assert server.chat(response_format={"type": "text"}, max_tokens=4).status_code == 200
    assert server.chat(response_format=FORMAT, n=3, max_tokens=64).status_code == 200


def test_a_schema_may_be_large_or_deep_and_the_others_go_on(server):
    """It is compiled beside the engine; what is too much is 400."""
    deep = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(2000)}}
    bomb = {"$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(9)}, "$ref": "#/$defs/d0"}
    bomb["$defs"]["d9"] = {"type": "integer"}
    for schema in (deep, wide, bomb, {"type": "string", "pattern": "(a{1,500}){1,500}"}):
        begun = time.monotonic()
        response = server.chat(json_schema=schema, max_tokens=8)
        assert response.status_code in (200, 400), response.text
        assert time.monotonic() - begun < 60
        assert server.chat(max_tokens=4).status_code == 200


def test_a_client_that_goes_away_from_a_constrained_stream_frees_its_row(model, processor):
    with serving(model, processor, max_batch_size=1, max_waiting=0) as server:
        for _ in range(3):
            body = chat(response_format={"type": "json_object"}, max_tokens=200, stream=True)
            connection = half_a_request(server.url, body)
            connection.recv(100)
            connection.close()
            server.wait_until_idle()
        assert server.chat(response_format=FORMAT, max_tokens=64).status_code == 200
