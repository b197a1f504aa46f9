"""Whatever is drawn, pyplot is as before: no figures of ours in it, the user's settings in force."""

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def pyplot_is_left_alone():
    settings = rc_params()
    yield
    assert plt.get_fignums() == []
    assert rc_params() == settings


def rc_params():
    """All but the backend, which matplotlib looks for when it is asked for."""
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}
