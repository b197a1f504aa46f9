import dask
import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.choice_maps import choice_maps, choice_statistics, morans_i, switching
from tests.analysis.synthetic import planted_scores

# order and shift of each predictor
ORDER, SHIFT = [0, 1, 1, 2, 2], [0.0, 0, 1, 0, 1]
CHECKERBOARD = np.indices((4, 4)).sum(axis=0) % 2
HALVES = np.indices((4, 4))[1] // 2


def make_scores(maps, *, distance=None, frames=1):
    """Maps (step, row, col) of chosen predictors, or (step, frame, row, col)."""
    maps = np.array(maps)
    steps, rows, columns = maps.shape[0], *maps.shape[-2:]
    token = np.arange(frames * rows * columns)
    coords = {"row": ("token", token // columns % rows), "col": ("token", token % columns)}
    if frames > 1:
        coords["frame"] = ("token", token // (rows * columns))
    return xr.Dataset(
        {"choice": (("step", "token"), maps.reshape(steps, -1).astype(np.int16))},
        coords={
            "step": np.arange(steps),
            "distance": ("step", np.arange(steps) + 1 if distance is None else distance),
            "order": ("predictor", ORDER),
            "shift": ("predictor", SHIFT),
            **coords,
        },
    )


def naive_moran(values):
    """Cliff and Ord's formula, place by place."""
    places = [p for p in np.ndindex(values.shape) if not np.isnan(values[p])]
    mean = np.mean([values[p] for p in places])
    above = weights = 0.0
    for p in places:
        for q in places:
            if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1:
                weights += 1
                above += (values[p] - mean) * (values[q] - mean)
    return len(places) / weights * above / sum((values[p] - mean) ** 2 for p in places)


def test_maps_put_every_token_in_its_place():
    maps = np.random.default_rng(0).integers(0, 5, (3, 2, 4))
    maps[1] = -1
    scores = make_scores(maps)
    for order in (np.arange(8), np.random.default_rng(1).permutation(8)):
        found = choice_maps(scores.isel(token=order))
        assert found["choice"].dims == ("step", "row", "col")
        assert found["choice"].dtype == found["chosen_order"].dtype == np.int16
        np.testing.assert_array_equal(found["choice"], maps)
        np.testing.assert_array_equal(found["chosen_order"], np.where(maps < 0, -1, np.array(ORDER)[maps]))
        np.testing.assert_array_equal(found["chosen_shift"], np.where(maps < 1, np.nan, np.array(SHIFT)[maps]))
        assert all(set(values.attrs) >= {"long_name", "units"} for values in found.data_vars.values())


def test_maps_of_a_video():
    maps = np.random.default_rng(0).integers(0, 5, (3, 2, 4, 5))
    scores = make_scores(maps, frames=2)
    found = choice_maps(scores)
    assert found["choice"].dims == ("step", "frame", "row", "col")
    np.testing.assert_array_equal(found["choice"], maps)
    moran = choice_statistics(scores)["moran_order"]
    assert moran.dims == ("step", "frame")
    for i, frame in np.ndindex(3, 2):
        assert moran[i, frame] == pytest.approx(naive_moran(np.array(ORDER)[maps[i, frame]].astype(float)))


def test_missing_places_stay_empty():
    scores = make_scores(np.ones((1, 2, 2), int)).isel(token=[0, 1, 3])
    assert choice_maps(scores)["choice"].values.tolist() == [[[1, 1], [-1, 1]]]


def test_a_checkerboard_and_two_halves():
    """By hand: all 24 pairs of the board differ; of the halves' 24 pairs 4 differ, (20 - 4) / 24 = 2 / 3."""
    index, expected = morans_i(np.stack([CHECKERBOARD, HALVES, np.ones((4, 4))]).astype(float))
    np.testing.assert_allclose(index, [-1, 2 / 3, np.nan])
    np.testing.assert_allclose(expected, [-1 / 15, -1 / 15, np.nan])


def test_moran_equals_the_formula_with_holes():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 4, (2, 5, 6, 7)).astype(float)
    maps[rng.random(maps.shape) < 0.2] = np.nan
    index, expected = morans_i(maps)
    for place in np.ndindex(2, 5):
        assert index[place] == pytest.approx(naive_moran(maps[place]))
        assert expected[place] == pytest.approx(-1 / (np.isfinite(maps[place]).sum() - 1))


def test_moran_needs_two_values_at_neighbours():
    apart = np.full((3, 3), np.nan)
    apart[0, 0], apart[2, 2] = 1, 2
    index, expected = morans_i(np.stack([apart, np.full((3, 3), np.nan), np.full((3, 3), 0.1)]))
    assert np.isnan(index).all()
    assert np.isnan(expected).all()


def test_shares_and_entropy_by_hand():
    """Half of the tokens take order 0, a quarter order 1 with no shift, a quarter order 2 with shift 1."""
    maps = [[[0, 0], [1, 4]], [[2, 2], [2, 2]], [[0, 0], [0, 0]], [[-1, -1], [-1, -1]], [[1, 2], [3, 4]]]
    found = choice_statistics(make_scores(maps))
    nothing = [np.nan] * 5
    np.testing.assert_allclose(
        found["share"],
        [[0.5, 0.25, 0, 0, 0.25], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], nothing, [0, 0.25, 0.25, 0.25, 0.25]],
    )
    np.testing.assert_allclose(
        found["order_share"], [[0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0], nothing[:3], [0, 0.5, 0.5]]
    )
    np.testing.assert_allclose(found["shift_share"], [[0.5, 0.5], [0, 1], nothing[:2], nothing[:2], [0.5, 0.5]])
    np.testing.assert_allclose(found["entropy"], [1.5, 0, 0, np.nan, 2], atol=1e-15)
    assert found["entropy"].attrs["units"] == "bit"
    assert found["chosen_order"].values.tolist() == [0, 1, 2]
    assert all(set(values.attrs) >= {"long_name", "units"} for values in found.data_vars.values())


def test_moran_of_order_and_shift():
    """Predictors 1 and 4 differ in order and shift, so both maps are the board; with order 0 nothing has a shift."""
    both = choice_statistics(make_scores([np.where(CHECKERBOARD, 4, 1), HALVES * 0, np.where(HALVES, 3, 1)]))
    np.testing.assert_allclose(both["moran_order"], [-1, np.nan, 2 / 3])
    np.testing.assert_allclose(both["moran_shift"], [-1, np.nan, np.nan])
    np.testing.assert_allclose(both["moran_order_expected"], [-1 / 15, np.nan, -1 / 15])


def test_switching_by_hand():
    """F . . F F . .: within a window steps 2 and 6, across two anchors step 5."""
    full = [-1, -1, -1, -1]
    choice = [full, [0, 1, 2, 3], [0, 1, 2, 4], full, full, [1, 2, 3, 4], [2, 1, 4, 4]]
    found = choice_statistics(make_scores(np.reshape(choice, (7, 2, 2)), distance=[0, 1, 2, 0, 0, 1, 2]))
    np.testing.assert_array_equal(found["switch_within"], [np.nan, np.nan, 0.25, np.nan, np.nan, np.nan, 0.75])
    np.testing.assert_array_equal(found["switch_across"], [np.nan] * 5 + [0.75, np.nan])


def test_switching_equals_a_loop_where_masks_differ():
    rng = np.random.default_rng(0)
    choice = rng.integers(0, 3, (4, 2, 20, 6))
    full = rng.random((4, 2, 20)) < 0.3
    full[..., 0] = True
    choice[full] = -1
    anchor = np.maximum.accumulate(np.where(full, np.arange(20), 0), axis=-1)
    within, across = switching(choice, anchor)
    for b, c in np.ndindex(4, 2):
        before = None
        for i in range(20):
            expected = [np.nan, np.nan]
            if not full[b, c, i]:
                if before is not None:
                    new_window = full[b, c, before:i].any()
                    expected[int(new_window)] = np.mean(choice[b, c, i] != choice[b, c, before])
                before = i
            np.testing.assert_array_equal([within[b, c, i], across[b, c, i]], expected)


def test_lazy_and_the_same_in_chunks():
    scores = planted_scores(0.5, samples=3)
    expected = choice_maps(scores), choice_statistics(scores)
    chunked = scores.chunk({"sample": 1, "step": 5, "token": 7}).assign_coords(scores.coords)
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("computed")):
        found = choice_maps(chunked), choice_statistics(chunked)
    for lazy, eager in zip(found, expected, strict=True):
        xr.testing.assert_allclose(lazy.compute(), eager)
    assert expected[1]["switch_within"].dims == ("sample", "context", "step")


def test_errors_name_what_is_wrong():
    scores = make_scores([CHECKERBOARD])
    with pytest.raises(ValueError, match=r"choice_maps needs .*\['row'\] are missing"):
        choice_maps(scores.drop_vars("row"))
    with pytest.raises(ValueError, match=r"choice_statistics needs .*\['distance'\] are missing"):
        choice_statistics(scores.drop_vars("distance"))
    with pytest.raises(ValueError, match=r"several tokens lie at one place.*\['row', 'col'\]"):
        choice_maps(scores.assign_coords(row=("token", [0] * 16)))
