import numpy as np

from tapstudy.analysis.rescoring import rescore
from tapstudy.bench.speed.recordings import FAMILIES, rescoring_speed, synthetic_features
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.taylor import TaylorFamily
from tests.table import each_row


def test_rates_are_scores_over_seconds():
    found = rescoring_speed(samples=2, tokens=9, channels=4, repeats=1)
    # S(8, 3) makes 8 full passes of 50
    scores = np.array([15, 150]) * 2 * 2 * 42 * 9
    for rate, seconds in (("rate", "seconds"), ("cpu_rate", "cpu_seconds")):
        assert found[rate].dims == ("candidates", "output")
        np.testing.assert_allclose(found[rate] * found[seconds], np.stack([scores, scores], axis=1))
    assert (found["seconds"] > 0).all()
    assert found.sel(candidates=150, output="selected")["rate"].attrs["units"] == "1/s"


@each_row("count", FAMILIES)
def test_families_have_the_size_they_are_named_by(count):
    assert len(TaylorFamily(shifts=FAMILIES[count]).labels) == count
    features = synthetic_features(samples=1, steps=6, tokens=4, channels=3)
    assert rescore(features, TAPConfig(shifts=FAMILIES[count])).sizes["predictor"] == count
