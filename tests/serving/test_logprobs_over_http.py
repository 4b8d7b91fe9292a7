"""Log-probabilities over HTTP: those of the engine, in OpenAI's shapes, whole and as streams."""

import openai
import pytest
from helpers import prompts
from serving_helpers import NAME, chat, chunks
from tiny_families import TEXT_TEMPLATE, build_tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from diffusionvl.modeling.logprobs import TokenLogprob
from diffusionvl.serving.logprobs import LEAST, Cursor, Spelling, of_chat, of_completion

NEW = {"max_tokens": 12, "return_token_ids": True}


@pytest.fixture(scope="module")
def expected(model, processor):
    inputs = prompts(processor, ("hi",))
    output = model.generate(**inputs, max_new_tokens=12, top_logprobs=2, return_dict_in_generate=True)
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), output.logprobs[0]


def assert_those(content, expected):
    tokens, entries = expected
    assert len(content) == len(tokens)
    for found, entry in zip(content, entries, strict=True):
        assert found["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
        top = [logprob for _, logprob in entry.top]
        assert [one["logprob"] for one in found["top_logprobs"]] == pytest.approx(top, abs=1e-4)


def test_a_chats_are_generates(server, expected):
    answer = server.chat(logprobs=True, top_logprobs=2, **NEW).json()["choices"][0]
    content = answer["logprobs"]["content"]
    assert answer["token_ids"] == expected[0]
    assert_those(content, expected)
    spelt = b"".join(bytes(entry["bytes"]) for entry in content)
    assert spelt.decode(errors="replace") == answer["message"]["content"]
    assert set(content[0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert set(content[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}


def test_top_logprobs_may_be_left_out(server):
    content = server.chat(logprobs=True, **NEW).json()["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * 12
    for fields in ({}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}):
        assert server.chat(**fields, **NEW).json()["choices"][0]["logprobs"] is None


def test_a_streams_chunks_carry_those_of_their_tokens(server, expected):
    body = chat(logprobs=True, top_logprobs=2, stream=True, **NEW)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        choices = [event["choices"][0] for event in chunks(response)]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == expected[0]
    given = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
    assert len(given) > 2
    assert_those([entry for content in given for entry in content], expected)
    assert all(
        len(choice["token_ids"]) == len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]
    )


def test_a_completions_are_lists(server, model, processor):
    inputs = processor.tokenizer("is there", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, top_logprobs=2, return_dict_in_generate=True)
    body = {"prompt": "is there", "logprobs": 2, **NEW}
    whole = server.client.post("/v1/completions", json=body).json()["choices"][0]
    found = whole["logprobs"]
    assert found["token_logprobs"] == pytest.approx([entry.logprob for entry in output.logprobs[0]], abs=1e-4)
    assert all(1 <= len(top) <= 2 for top in found["top_logprobs"])
    for place, (token, offset) in enumerate(zip(found["tokens"], found["text_offset"], strict=True)):
        if not token.startswith("bytes:"):
            assert whole["text"][offset:].startswith(token), place
    with server.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        parts = [event["choices"][0]["logprobs"] for event in chunks(response)]
    for name, values in found.items():
        assert [value for part in parts if part for value in part[name]] == values


def test_openais_client_reads_them(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        asked = {"model": NAME, "messages": messages, "logprobs": True, "top_logprobs": 3, "max_tokens": 5}
        answer = client.chat.completions.create(**asked)
        assert [len(entry.top_logprobs) for entry in answer.choices[0].logprobs.content] == [3] * 5
        parts = [part.choices[0].logprobs for part in client.chat.completions.create(**asked, stream=True)]
        entries = [entry for part in parts if part for entry in part.content]
        assert [entry.logprob for entry in entries] == pytest.approx(
            [entry.logprob for entry in answer.choices[0].logprobs.content], abs=1e-4
        )
        completion = client.completions.create(model=NAME, prompt="hi", logprobs=1, max_tokens=5)
        assert len(completion.choices[0].logprobs.tokens) == 5


def test_tokens_are_spelt_byte_by_byte():
    tokenizer = build_tokenizer(TEXT_TEMPLATE)
    spelling, pieces = Spelling(tokenizer), bytes_to_unicode()
    ids = [tokenizer.convert_tokens_to_ids(pieces[byte]) for byte in "a é".encode()]
    assert [spelling.bytes_of(token) for token in ids] == [b"a", b" ", b"\xc3", b"\xa9"]
    entries = [TokenLogprob(-1.0, [(token, -1.0), (ids[0], float("-inf"))]) for token in ids]
    found = of_completion(spelling, ids, entries, Cursor(spelling))
    assert found["tokens"] == ["a", " ", "bytes:\\xc3", "bytes:\\xa9"]
    assert found["text_offset"] == [0, 1, 2, 2]
    assert found["top_logprobs"] == [{"a": -1.0}, {"a": LEAST, " ": -1.0}, *found["top_logprobs"][2:]]
    cut = [ids[2], ids[0], ids[3], ids[2], ids[3]]  # two that stay incomplete are written as one mark each
    assert b"".join(map(spelling.bytes_of, cut)).decode(errors="replace") == "\ufffda\ufffdé"
    assert of_completion(spelling, cut, [*entries, entries[0]], Cursor(spelling))["text_offset"] == [0, 1, 2, 3, 3]
    content = of_chat(spelling, ids, entries)["content"]
    assert [entry["token"] for entry in content] == ["a", " ", "\\xc3", "\\xa9"]
    assert content[1]["top_logprobs"][1] == {"token": "a", "logprob": LEAST, "bytes": [97]}
