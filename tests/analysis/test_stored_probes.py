"""Rounding of stored probes: nothing where they have few bits anyway, hand-made flips where it decides."""

import numpy as np
import torch

from tapstudy import TAPConfig
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.stored_probes import stored_probes
from tests.analysis.trajectories import make_features


def test_nothing_changes_where_rounding_changes_nothing():
    data = make_features(samples=2)
    data["probe"] = data["probe"].copy(data=torch.tensor(data["probe"].values).bfloat16().float().numpy())
    found = stored_probes(data, TAPConfig(interval=4))
    assert found["changed"].dims == ("sample",)
    assert (found["changed"] == 0).all()
    assert (found["true_error_change"] == 0).all()
    assert found.attrs["probe_dtype"] == "bfloat16"


def test_shares_by_hand():
    """The two rescorings compared token by token."""
    data = make_features(samples=3)
    data["probe"] = 100 + 0.3 * data["probe"]  # steps of bfloat16 are as large as what happens from step to step
    found = stored_probes(data, TAPConfig(interval=4))
    exact, stored = (
        rescore(data, TAPConfig(interval=4, probe_dtype=dtype)).compute() for dtype in (None, torch.bfloat16)
    )
    skips = np.broadcast_to((exact["is_full"].values == 0)[..., None], exact["choice"].shape)
    differs = exact["choice"].values != stored["choice"].values
    expected = [differs[i][skips[i]].mean() for i in range(3)]
    np.testing.assert_allclose(found["changed"], expected, rtol=1e-6)
    assert min(expected) > 0
    errors = [
        np.take_along_axis(one["true_error"].values, np.maximum(choice, 0)[..., None], axis=-1)[..., 0]
        for one, choice in ((exact, exact["choice"].values), (exact, stored["choice"].values))
    ]
    means = [[error[i][skips[i]].mean() for i in range(3)] for error in errors]
    np.testing.assert_allclose(found["true_error"], means[0], rtol=1e-5)
    np.testing.assert_allclose(found["true_error_change"], np.divide(means[1], means[0]) - 1, rtol=1e-3, atol=1e-6)
