"""What cannot be answered: the right status, OpenAI's shape, and the name of the field."""

import base64
import json
import threading

import pytest
from serving_helpers import chat, chunks, serving, shown

ROUTES = ("/v1/chat/completions", "/v1/completions")
SCHEMA = {"name": "x", "schema": {"type": "object"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def refused(response, status, param=None, *said):
    """The error's message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    for part in said:
        assert part in error["message"]
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "json_schema": SCHEMA}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**SCHEMA, "schema": {"type": 3}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ({"json_schema": {"type": "frog"}}, "json_schema"),
        ({"json_schema": {"$ref": "https://example.org/schema"}}, "json_schema"),
        ({"json_schema": {"enum": []}}, "json_schema"),
        ({"json_schema": {"description": "x" * 2**19}}, "json_schema"),
        ({"regex": "(a"}, "regex"),
        ({"regex": ""}, "regex"),
        ({"regex": "a", "choices": ["b"]}, "choices"),
        ({"grammar": "start: missing"}, "grammar"),
        ({"choices": []}, "choices"),
        ({"choices": "yes"}, "choices"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": 1e-30}, "temperature"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty"),  # all scores would be infinite
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop.constrained-str"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"remasking": "magic"}, None),
        ({"denoising_steps": 9}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content.list[tagged-union]"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_served_is_named(server, fields, param, stream):
    response = server.client.post("/v1/chat/completions", json={**chat(), "stream": stream, **fields})
    assert response.status_code == 400
    found = response.json()["error"]["param"]
    assert found == param or (param and found.startswith(param.partition(".constrained")[0].partition(".list")[0]))


def test_harmless_defaults_pass(server):
    fields = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "user": "somebody",
        "n": 1,
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "stream_options": None,
        "metadata": {"a": "b"},
        "store": False,
        "top_k": -1,
        "parallel_tool_calls": True,
    }
    assert server.chat(**fields).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\ud800"}',
        b'{"prompt": [], "messages": {}}',
        b'{"prompt": [[]], "messages": [{"role": "user", "content": [[]]}]}',
        b'{"prompt": [1e9, 4], "messages": [{"role": "user", "content": [{"type": "text"}]}]}',
        b'{"prompt": [99999999], "messages": [{"role": "user"}], "stream_options": {}}',
        b'{"prompt": ["a", 3], "messages": "hi"}',
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_a_malformed_body_is_400(server, route, body):
    response = server.client.post(route, content=body, headers={"content-type": "application/json"})
    refused(response, 400, response.json()["error"]["param"])


def test_other_media_types_routes_and_methods(server):
    refused(server.client.post(ROUTES[0], content=json.dumps(chat())), 400)
    refused(server.client.get(ROUTES[0]), 405)
    refused(server.client.get("/v1/embeddings"), 404)
    refused(server.client.get("/v1/models/gpt"), 404, "model", "'gpt'", "'tiny'")
    refused(server.chat(model="gpt"), 404, "model", "'gpt'", "'tiny'")


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "data:image/png;base64",
        "data:image/png;base64,!!!!",
        "data:image/png;base64," + base64.b64encode(b"no picture").decode(),
        "data:image/svg+xml,<svg/>",
        "http://169.254.169.254/latest",
        "http://[::1",
        "https://example.org/a.png",
    ],
)
def test_a_picture_that_cannot_be_read_is_400_and_is_never_a_file(server, url):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]
    error = refused(server.chat(content), 400, server.chat(content).json()["error"]["param"])
    assert "root:" not in error["message"]


def test_limits_are_413_and_429(model, processor, pictures, monkeypatch):
    limits = {
        "max_images": 1,
        "max_pixels": 64 * 64 - 1,
        "max_body_bytes": 60_000,
        "max_batch_size": 1,
        "max_waiting": 1,
    }
    with serving(model, processor, **limits) as server:
        refused(
            server.chat(shown("x", pictures[1], pictures[1])), 413, "messages[0].content[1].image_url", "1 pictures"
        )
        refused(server.chat(shown("x", pictures[0])), 413, "messages[0].content[0].image_url", "64 x 64", "4095 pixels")
        refused(server.chat("x" * 60_000), 413, None, "60000 bytes")
        body = json.dumps(chat("x" * 60_000)).encode()
        unsized = server.client.post(
            ROUTES[0], content=iter([body[:30_000], body[30_000:]]), headers={"content-type": "application/json"}
        )
        refused(unsized, 413, None, "60000 bytes")
        refused(server.chat(n=3), 400, "n")
        error = refused(server.chat("is it? " * 100), 400, "messages", "tokens")
        assert error["code"] == "context_length_exceeded"
        go_on, step = threading.Event(), server.service.thread._step
        monkeypatch.setattr(server.service.thread, "_step", lambda: go_on.wait(20) and step())
        with server.client.stream("POST", ROUTES[0], json=chat(n=2, stream=True)) as running:
            busy = server.chat()
            refused(busy, 429)
            assert int(busy.headers["retry-after"]) >= 1
            go_on.set()
            assert len(chunks(running)) > 4
        server.wait_until_idle()
        assert server.chat().status_code == 200


def test_a_key_keeps_others_out(model, processor):
    with serving(model, processor, api_key="sesame") as server:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "sesame"}, {"authorization": "é"}):
            raw = {name: value.encode() for name, value in headers.items()}
            error = refused(server.client.get("/v1/models", headers=raw), 401, None)
            assert error["code"] == "invalid_api_key"
        assert server.client.get("/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
        assert server.client.get("/health").status_code == 200


def test_a_failing_model_is_500_and_the_server_goes_on(model, processor, monkeypatch):
    """Its requests end, whole or as streams; the next one is answered by a new engine."""
    with serving(model, processor) as server:
        expected = server.chat().json()["choices"]
        with monkeypatch.context() as patch:
            patch.setattr("diffusionvl.modeling.engine.Engine.step", lambda self: 1 / 0)
            refused(server.chat(), 500)
            with server.client.stream("POST", ROUTES[0], json=chat(stream=True)) as response:
                last = [line for line in response.iter_lines() if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        server.wait_until_idle()
        assert server.client.get("/health").status_code == 200
        assert server.chat().json()["choices"] == expected
        assert server.metric("answers_ended_total", reason="error") == 2


def test_a_dead_engine_is_unhealthy(model, processor, monkeypatch):
    monkeypatch.setattr("diffusionvl.serving.engine_thread.EngineThread._step", lambda self: 1 / 0)
    with serving(model, processor) as server:
        refused(server.chat(), 503)
        server.service.thread._thread.join(5)
        assert server.client.get("/health").status_code == 503
        refused(server.chat(), 503)
        assert server.service.open == 0
