"""Classes and steps by hand."""

import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.error_propagation import error_propagation, per_image, per_step
from tapstudy.analysis.token_classes import by_class, shares_by_class


def content(codes, names="background edge interior"):
    values = xr.DataArray(np.asarray(codes), dims=("sample", "token"), attrs={"flag_meanings": names})
    return xr.Dataset({"token_class": values})


def test_quartiles_of_every_class_over_images_and_tokens():
    values = xr.DataArray(
        [[[np.nan] * 4, [1, 2, 3, 100]], [[np.nan] * 4, [5, 200, 4, 300]]], dims=("sample", "step", "token"),
        coords={"step": [3, 7]},
    )  # fmt: skip
    found = by_class(values, content([[0, 0, 0, 1], [0, 1, 0, 1]]))
    assert found["step"].values.tolist() == [7]  # nothing at step 3
    assert found["token_class"].values.tolist() == ["background", "edge"]  # no token is interior
    assert found.sel(token_class="background", step=7).values.tolist() == [2, 3, 4]
    assert found.sel(token_class="edge", quantile=0.5).item() == 200


def test_shares_of_every_class_add_up_to_one():
    values = xr.DataArray([[[0, 1, 1, 2], [0, 0, 1, np.nan]]], dims=("sample", "step", "token"))
    found = shares_by_class(values, content([[0, 1, 1, 1]]))
    assert found["value"].values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.sel(token_class="background"), [1, 0, 0])
    np.testing.assert_allclose(found.sel(token_class="edge"), [0.2, 0.6, 0.2])
    assert found.sel(token_class="interior").isnull().all()


def test_values_need_tokens():
    with pytest.raises(ValueError, match="by_class"):
        by_class(xr.DataArray([1.0], dims="step"), content([[0]]))


def test_per_step_ends_where_per_image_does():
    rng = np.random.default_rng(0)
    policies, steps = ["reference", "a", "b"], 6
    shape, nodes = (3, 2, steps, 4, 5), (3, 2, steps + 1, 4, 5)
    dims = ("policy", "sample", "step", "token", "latent_channel")
    runs = xr.Dataset(
        {
            "state": (
                ("policy", "sample", "node", "token", "latent_channel"),
                rng.normal(size=nodes),
            ),
            "velocity_used": (dims, rng.normal(size=shape)),
            "velocity_exact": (dims, rng.normal(size=shape)),
            "is_full": (("policy", "sample", "step"), np.tile([1, 0, 0, 1, 0, 0], (3, 2, 1))),
        },
        coords={"policy": policies, "step": range(steps), "node_sigma": ("node", np.linspace(1, 0, steps + 1))},
    )
    errors = error_propagation(runs)
    found, end = per_step(errors), per_image(errors)
    for name in (
        "path_length",
        "net_error",
        "net_propagated",
        "deviation",
        "coherence",
        "amplification",
        "feedback_cosine",
    ):
        np.testing.assert_allclose(found[name].isel(step=-1), end[name])
    assert found["deviation"].dims == ("policy", "sample", "step")
    assert found["coherence"].isel(step=0).isnull().all()  # before the first skip step
