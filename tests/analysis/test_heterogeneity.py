import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import tapstudy
from tapstudy.analysis.heterogeneity import chosen_order, relation, token_dynamics
from tapstudy.analysis.stats import with_interval
from tapstudy.analysis.variance_shares import variance_shares
from tests.table import each_row

DIMS = ("sample", "context", "step", "token", "channel")


def recording(features, *, dims=DIMS, sigma=None):
    """Features (step, token, channel) with leading dims of size one."""
    features = np.asarray(features)
    features = features.reshape((1,) * (len(dims) - features.ndim) + features.shape)
    steps = features.shape[dims.index("step")]
    sigma = np.linspace(1, 0.1, steps) if sigma is None else sigma
    return xr.Dataset({"residual": (dims, features)}, coords={"step": range(steps), "sigma": ("step", sigma)})


def of_one(features, **options):
    """Dynamics of one trajectory (step, channel), each (step,)."""
    return token_dynamics(recording(np.asarray(features)[:, None, :]), **options).squeeze()


def test_naive_loop():
    """Every quantity against the definition, written out for one token at a time."""
    rng = np.random.default_rng(0)
    sigma = np.arange(7.0)
    features = rng.normal(size=(2, 2, 7, 3, 4))
    found = token_dynamics(recording(features)).load()
    for s, c, n in np.ndindex(2, 2, 3):
        f = features[s, c, :, n]
        at = found.isel(sample=s, context=c, token=n)
        for i in range(7):
            if i >= 1:
                v = (f[i] - f[i - 1]) / (sigma[i] - sigma[i - 1])
                assert at.velocity[i] == pytest.approx(np.linalg.norm(v), rel=1e-5)
                assert at.relative_velocity[i] == pytest.approx(np.linalg.norm(v) / np.linalg.norm(f[i]), rel=1e-5)
            if i >= 2:
                p = np.polynomial.Polynomial
                parabolas = [np.polyfit(sigma[i - 2 : i + 1], f[i - 2 : i + 1, d], 2)[::-1] for d in range(4)]
                v = np.array([p(q).deriv()(sigma[i - 1]) for q in parabolas])
                a = np.array([p(q).deriv(2)(0) for q in parabolas])
                across = a - (a @ v) / (v @ v) * v
                one, two = f[i - 1] - f[i - 2], f[i] - f[i - 1]
                cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
                assert at.acceleration[i] == pytest.approx(np.linalg.norm(a), rel=1e-5)
                assert at.curvature[i] == pytest.approx(np.linalg.norm(across) / (v @ v), rel=1e-4)
                assert at.turning_angle[i] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-4)
            if i >= 4:
                misses = []
                for m in range(4):
                    past = slice(i - m - 1, i)
                    fits = [np.polyval(np.polyfit(sigma[past], f[past, d], m), sigma[i]) for d in range(4)]
                    misses.append(np.linalg.norm(f[i] - fits))
                assert at.effective_order[i] == np.flatnonzero(np.array(misses) <= 1.1 * min(misses))[0]
    for name, first in (("velocity", 1), ("acceleration", 2), ("curvature", 2), ("effective_order", 4)):
        values = found[name].transpose("step", ...)
        assert values[:first].isnull().all()
        assert values[first:].notnull().all()


def test_circle():
    """Radius 5, one degree a step: curvature 2 / (r (1 + cos a)), turning angle a, speed the chord."""
    angle = np.radians(np.arange(20.0))
    circle = 5 * np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], axis=1)
    found = of_one(circle + 100.0)
    np.testing.assert_allclose(found.curvature[2:], 2 / (5 * (1 + np.cos(np.radians(1)))), rtol=1e-5)
    np.testing.assert_allclose(found.turning_angle[2:], 1, rtol=1e-5)
    np.testing.assert_allclose(found.velocity[1:], 10 * np.sin(np.radians(0.5)), rtol=1e-5)


def test_straight_line_and_standstill():
    line = np.arange(8.0)[:, None] * [3.0, 4.0]
    found = of_one(line)
    np.testing.assert_allclose(found.velocity[1:], 5)
    np.testing.assert_allclose(found.acceleration[2:], 0)
    np.testing.assert_allclose(found.curvature[2:], 0)
    np.testing.assert_allclose(found.turning_angle[2:], 0)
    back = of_one([[float(i % 2)] * 2 for i in range(8)])
    np.testing.assert_allclose(back.turning_angle[2:], 180)
    still = of_one(np.ones((8, 2)))
    assert (still.velocity[1:] == 0).all()
    assert (still.effective_order[4:] == 0).all()
    assert still[["curvature", "turning_angle", "high_frequency_share"]].to_array().isnull().all()


@each_row(
    ("order", "dtype"),
    [(order, dtype) for order in range(4) for dtype in ("float64", "float32", "float16")],
)
def test_effective_order_of_polynomials(order, dtype):
    step = np.arange(14.0)
    rng = np.random.default_rng(order)
    features = sum(rng.normal(size=16) * (step[:, None] / 4) ** m for m in range(order + 1))
    found = of_one(features.astype(dtype))
    assert (found.effective_order[4:] == order).mean() > (0.65 if dtype == "float16" else 0.99)


def test_noise_has_order_zero():
    """White noise: the miss of degree m grows like sqrt(binomial(2m + 2, m + 1))."""
    features = np.random.default_rng(0).normal(size=(1, 1, 30, 20, 64))
    assert (token_dynamics(recording(features)).effective_order.isel(step=slice(4, None)) == 0).all()


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_symmetries(scale, seed):
    """Scaling, shifting and rotating the features change only what they must."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, 5)).cumsum(axis=0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b = of_one(features).load(), of_one(scale * features @ rotation).load()
    for name in ("turning_angle", "effective_order", "relative_velocity", "high_frequency_share"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3)
    for name, power in (("velocity", 1), ("acceleration", 1), ("curvature", -1)):
        np.testing.assert_allclose(a[name] * scale**power, b[name], rtol=1e-3)
    moved = of_one(features + 7.0).load()
    np.testing.assert_allclose(a["curvature"], moved["curvature"], rtol=1e-3)


def test_high_frequency_share_of_waves():
    """Two waves on a line: the share is that of the squared amplitude of the fast one."""
    step = np.arange(64.0)[:, None]
    slow, fast = np.sin(2 * np.pi * 0.05 * step), np.cos(2 * np.pi * 0.3 * step)
    share = lambda features: float(of_one(features).high_frequency_share)  # noqa: E731
    assert share(slow + 0.2 * step) < 0.01
    assert share(fast - 3 * step + 50) > 0.99
    assert share(3 * slow + fast) == pytest.approx(0.1, abs=0.01)
    assert share(np.hstack([slow, fast])) == pytest.approx(0.5, abs=0.02)


def test_lazy_and_real():
    real = tapstudy.open_recording("data/recordings/features.zarr")
    found = token_dynamics(real)
    assert all(values.chunks is not None for values in found.values())
    assert found.velocity.dims == ("sample", "context", "step", "token")
    assert all({"long_name", "units"} <= values.attrs.keys() for values in found.values())
    features = real.residual[0, 1, 10:12].astype("f8")
    expected = np.linalg.norm(features[1] - features[0], axis=-1)
    np.testing.assert_allclose(found.velocity[0, 1, 11], expected, rtol=1e-4)
    assert token_dynamics(real, variable="probe").velocity.dims == ("sample", "context", "step", "depth", "token")


@each_row(
    ("change", "options", "message"),
    [
        (lambda d: d.drop_vars("residual"), {}, r"\['residual'\] are missing"),
        (lambda d: d.rename(token="place"), {}, r"lacks \['token'\]"),
        (lambda d: d.isel(step=slice(4)), {}, "at least 5 steps"),
        (lambda d: d.isel(step=[0, 1, 2, 3, 5]), {}, r"one after the other, got \[0, 1, 2, 3, 5\]"),
    ],
)
def test_bad_input(change, options, message):
    with pytest.raises(ValueError, match=message):
        token_dynamics(change(recording(np.ones((6, 2, 3)))), **options)


# Whose variance


def table(sample=0.0, step=0.0, position=0.0, token=0.0, noise=0.0, shape=(6, 12, 40), seed=0):
    """A table with effects of the given standard deviations."""
    rng = np.random.default_rng(seed)
    s, t, n = shape
    values = (
        sample * rng.normal(size=(s, 1, 1)) + step * rng.normal(size=(1, t, 1)) + position * rng.normal(size=(1, 1, n))
        + token * rng.normal(size=(s, 1, n)) + noise * rng.normal(size=shape)
    )  # fmt: skip
    return xr.DataArray(values, dims=("sample", "step", "token"))


@each_row("source", ["sample", "step", "position"])
def test_planted_share_is_one(source):
    found = variance_shares(5 + table(**{source: 1.0}), permutations=20)
    assert found.share.sel(source=source) == pytest.approx(1)
    assert found.share.sum() == pytest.approx(1)


def test_planted_token_offsets():
    found = variance_shares(table(token=2.0, noise=1.0), permutations=99)
    assert found.share.sel(source=["position", "token"]).sum() == pytest.approx(4 / 5, abs=0.04)
    assert found.p_value.sel(source="token") == 0.01
    assert found.share.sel(source="token") > found.null_high.sel(source="token")


def test_noise_lies_in_the_null_interval():
    """A 95 % interval of 100 permutations holds 93 % of the shares of noise, and the p-values are uniform."""
    inside, p_values = 0, []
    for seed in range(150):
        values = table(step=1.0, sample=1.0, noise=1.0, shape=(3, 6, 20), seed=seed)
        token = variance_shares(values, permutations=100).sel(source="token")
        inside += int(token.null_low <= token.share <= token.null_high)
        p_values.append(float(token.p_value))
    assert inside / 150 > 0.86
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_shares_equal_sums_of_squares_by_hand():
    values = table(1, 1, 1, 1, 1, shape=(2, 3, 4)).values
    found = variance_shares(xr.DataArray(values, dims=("sample", "step", "token")), permutations=0)
    total = ((values - values.mean()) ** 2).sum()
    within = sum(
        3 * (values[s, :, n].mean() - values[s].mean()) ** 2 for s in range(2) for n in range(4)
    )  # fmt: skip
    position = 6 * ((values.mean(axis=(0, 1)) - values.mean()) ** 2).sum()
    np.testing.assert_allclose(found.share.sel(source="position"), position / total)
    np.testing.assert_allclose(found.share.sel(source="token"), (within - position) / total)
    np.testing.assert_allclose(
        found.share.sel(source="step"), 8 * ((values.mean(axis=(0, 2)) - values.mean()) ** 2).sum() / total
    )
    assert found.p_value.isnull().all()


def test_log_missing_steps_and_contexts():
    planted = np.exp(table(step=2.0, token=0.5, noise=0.1))
    both = xr.concat([planted, planted**2], dim="context")
    both[..., :2, :] = np.nan
    found = variance_shares(both.chunk(sample=1), log=True, permutations=10)
    assert found.share.dims == ("context", "source")
    np.testing.assert_allclose(found.share.isel(context=0), found.share.isel(context=1))
    shorter = variance_shares(np.log(planted[:, 2:]), permutations=10)
    np.testing.assert_allclose(found.share.isel(context=0), shorter.share)
    single = variance_shares(planted.isel(sample=0), permutations=10)
    assert single.share.sel(source=["sample", "token"]).values == pytest.approx([0, 0])
    assert single.p_value.notnull().values.tolist() == [False, False, True, False, False]


NOISE = table(noise=1.0)


@each_row(
    ("values", "options", "message"),
    [
        (NOISE.rename(token="place"), {}, r"lack \['token'\]"),
        (NOISE.where(NOISE > -2), {}, "not finite at steps that have others"),
        (
            NOISE.assign_coords(step=range(12), sample=range(6)).where(lambda v: v.step + v.sample > 0),
            {},
            "other steps",
        ),
        (NOISE, {"log": True}, "of 0 or less"),
        (table() + 3.0, {}, "no variance"),
        (NOISE.isel(token=[0]), {}, "two steps and two tokens"),
    ],
)
def test_bad_tables(values, options, message):
    with pytest.raises(ValueError, match=message):
        variance_shares(values, permutations=2, **options)


# Relations


def test_relation_equals_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 2, 4, 30))
    b = rng.integers(0, 3, (3, 2, 4, 30)).astype(float)
    b[0, 0, 0] = np.nan
    b[1, 1, 1, :9] = np.nan
    b[2, 0, 2] = 1.0
    dims = ("sample", "context", "step", "token")
    found = relation(xr.DataArray(a, dims=dims).chunk(sample=1), xr.DataArray(b, dims=dims))
    assert found.dims == dims[:-1]
    assert found.chunks is not None
    for s, c, i in np.ndindex(3, 2, 4):
        kept = np.isfinite(b[s, c, i])
        if (s, c, i) in {(0, 0, 0), (2, 0, 2)}:
            assert np.isnan(found[s, c, i])
        else:
            expected = stats.spearmanr(a[s, c, i, kept], b[s, c, i, kept]).statistic
            assert float(found[s, c, i]) == pytest.approx(expected, abs=1e-12)


def test_relation_of_speed_and_chosen_order():
    """Real choices: full steps drop out, the rest is ready for an interval over images."""
    scores = tapstudy.open_recording("data/recordings/scores.zarr")
    order = chosen_order(scores).load()
    assert set(np.unique(order.values[np.isfinite(order.values)])) <= {0, 1, 2}
    assert (np.isnan(order.values) == (scores.choice.values == -1)).all()
    step = int(np.flatnonzero(scores.is_full[0, 0] == 0)[0])
    assert order[0, 0, step, 5] == scores.order.values[int(scores.choice[0, 0, step, 5])]
    found = relation(order + 0.0, order).mean(["context", "step"]).compute()
    assert with_interval(found).sel(bound="low") == pytest.approx(1)
    with pytest.raises(ValueError, match="other has no dimension 'token'"):
        relation(order, order.mean("token"))
