"""The planted properties are there."""

import numpy as np

from tests.analysis.synthetic import edge_tokens, planted_scores, polynomial_features, schedule


def test_features_have_the_planted_degrees():
    features = polynomial_features()
    for name in ("probe", "residual"):
        for degree in (1, 3):
            values = features[name].isel(token=np.flatnonzero(features["degree"] == degree))
            size = float(abs(values.diff("step", n=degree)).max())
            assert abs(values.diff("step", n=degree + 1)).max() < 1e-11 * size < size


def test_edges_lie_where_the_image_changes():
    features = polynomial_features(rows=8, cols=8, patch=3)
    image = features["image"].isel(sample=0, band=0).values
    y, x = np.nonzero(np.abs(np.diff(image, axis=0, append=0)) + np.abs(np.diff(image, axis=1, append=0)))
    near = np.zeros((8, 8), bool)
    near[y // 3, x // 3] = near[(y + 1) // 3, x // 3] = near[y // 3, (x + 1) // 3] = True
    assert (edge_tokens().reshape(8, 8) <= near).all()
    assert edge_tokens().sum() == 12


def test_schedule_and_masks():
    full, distance = schedule(9, interval=3, warmup=2)
    assert full.nonzero()[0].tolist() == [0, 1, 4, 7]
    assert distance.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1]
    scores = planted_scores(0.5, samples=1)
    at_full = scores.isel(sample=0, context=0, step=6)
    assert at_full["proxy_loss"].isnull().all()
    assert (at_full["choice"] == -1).all()
    assert (at_full["is_distinct"] == -1).all()
