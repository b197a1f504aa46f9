"""The planted properties are there."""

from tests.analysis.synthetic import planted_scores, schedule


def test_schedule_and_masks():
    full, distance = schedule(9, interval=3, warmup=2)
    assert full.nonzero()[0].tolist() == [0, 1, 4, 7]
    assert distance.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1]
    scores = planted_scores(0.5, samples=1)
    at_full = scores.isel(sample=0, context=0, step=6)
    assert at_full["proxy_loss"].isnull().all()
    assert (at_full["choice"] == -1).all()
    assert (at_full["is_distinct"] == -1).all()
