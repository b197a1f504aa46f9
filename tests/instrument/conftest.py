"""What several tests of compiled models share."""

import pytest
import torch


@pytest.fixture
def graphs():
    """A backend that keeps the graphs it was given, each to be run as it is."""
    torch._dynamo.reset()
    captured = []

    def backend(graph, example_inputs):
        captured.append(graph)
        return graph.forward

    backend.captured = captured
    yield backend
    torch._dynamo.reset()
