"""Requests that a machine makes up from the server's own description: none of them is answered with 500."""

import pytest
from serving_helpers import serving

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

EXAMPLES = 60  # for each route, good and bad requests


@pytest.mark.slow
def test_no_request_that_schemathesis_makes_up_breaks_the_server(model, processor):
    quietly = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    statuses = []

    def ask(case):
        if isinstance(case.body, dict):
            case.body.pop("model", None)  # else nearly all would be 404
        response = case.call(base_url=server.url)
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text

    with serving(model, processor, max_length=64) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [operation.ok() for operation in schema.get_all_operations()]
        for operation in operations:
            wrong = [schemathesis.GenerationMode.NEGATIVE] if operation.path.startswith("/v1/c") else []  # has a body
            for mode in [schemathesis.GenerationMode.POSITIVE, *wrong]:
                hypothesis.given(operation.as_strategy(generation_mode=mode))(quietly(lambda case: ask(case)))()
        assert server.service.thread.alive
        server.wait_until_idle()
        assert server.chat(max_tokens=4).status_code == 200
    assert len(statuses) >= 200
    assert {200, 400} <= set(statuses)
