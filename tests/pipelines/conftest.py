from __future__ import annotations

import pytest

from tests.pipelines.tiny import FACTORIES, Built


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Built:
    """The pipeline that a test names, with the arguments of a call; a test leaves it as it was."""
    return FACTORIES[request.param]()
