from __future__ import annotations

import pytest

from tests.pipelines.tiny import FACTORIES, Built


@pytest.fixture(scope="session", params=FACTORIES)
def built(request: pytest.FixtureRequest) -> Built:
    """Every pipeline with the arguments of a call; a test leaves it as it was."""
    return FACTORIES[request.param]()
