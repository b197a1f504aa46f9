"""The layers of the map explorer against loops."""

import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.explorer_layers import explorer_layers

ORDER, SHIFT = [0, 1, 2], [0.0, 1.5, 0.0]


def scores(*leading, dtype=np.float32, seed=0):
    """Steps 0 and 2 are full; `leading` dimensions have two entries each."""
    rng = np.random.default_rng(seed)
    shape = (*(2 for _ in leading), 4, 5, 3)
    dims = (*leading, "step", "token", "predictor")
    proxy, truth = (rng.uniform(0.01, 2, shape).astype(dtype) for _ in range(2))
    choice = proxy.argmin(-1).astype(np.int16)
    for values in (proxy, truth):
        values[..., [0, 2], :, :] = np.nan
    choice[..., [0, 2], :] = -1
    return xr.Dataset(
        {
            "choice": (dims[:-1], choice),
            "proxy_loss": (dims, proxy),
            "true_error": (dims, truth),
            "probe": ((*dims[:-2], "depth", "token", "channel"), rng.normal(size=(*shape[:-2], 2, 5, 7)).astype(dtype)),
        },
        coords={"order": ("predictor", ORDER), "shift": ("predictor", SHIFT)},
    )


@pytest.mark.parametrize(
    ("leading", "dtype"), [((), np.float32), (("sample",), np.float16), (("sample", "context"), np.float32)]
)
def test_against_loops(leading, dtype):
    data = scores(*leading, dtype=dtype)
    found = explorer_layers(data.chunk(dict.fromkeys(leading, 1)))
    assert all(found[name].chunks is not None or not leading for name in found)
    found = found.load()
    for place in np.ndindex(data["choice"].shape):
        p = int(data["choice"].values[place])
        one = {name: found[name].values[place] for name in found}
        probe = data["probe"].values[(*place[:-1], 0, place[-1])].astype(np.float64)
        assert one["probe_norm"] == pytest.approx(np.sqrt((probe**2).sum()), rel=1e-6)
        if p < 0:
            assert one.pop("best") == -1
            assert all(np.isnan(value) for name, value in one.items() if name != "probe_norm")
            continue
        truth = data["true_error"].values[place].astype(np.float64)
        assert (one["chosen_order"], one["chosen_shift"]) == (ORDER[p], SHIFT[p])
        assert one["chosen_proxy_loss"] == data["proxy_loss"].values[place][p]
        assert one["chosen_error"] == truth[p]
        assert one["best_error"] == min(truth)
        assert one["best"] == list(truth).index(min(truth))
        assert one["regret"] == pytest.approx(truth[p] - min(truth), abs=1e-7)


def test_every_layer_is_labelled():
    found = explorer_layers(scores("sample"))
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found)
    assert "probe_norm" not in explorer_layers(scores("sample").drop_vars("probe"))


def test_bad_input():
    with pytest.raises(ValueError, match=r"\['true_error'\] are missing"):
        explorer_layers(scores().drop_vars("true_error"))
    with pytest.raises(ValueError, match=r"choice must have the dimensions \('step', 'token'\)"):
        explorer_layers(scores().assign(choice=scores()["choice"].isel(token=0)))
