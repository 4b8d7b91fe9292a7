"""A running server over a tiny model, for all tests of this folder."""

import pytest
from helpers import lively
from serving_helpers import serving


@pytest.fixture(scope="package")
def model(causal_dir):
    """Its answers vary; their length and end are those of a checkpoint."""
    model = lively(causal_dir)
    model.generation_config.update(max_new_tokens=24)
    return model


@pytest.fixture(scope="package")
def server(model, processor):
    """A server with default limits."""
    with serving(model, processor) as server:
        yield server
