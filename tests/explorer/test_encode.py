"""Quantised values decode within the stated error; packed arrays come back as they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tapstudy.explorer.encode import pack, quantise
from tests.explorer.decode import dequantise, unpack

positive = st.floats(1e-8, 1e8)
values = arrays(np.float64, array_shapes(max_dims=3), elements=st.one_of(positive, st.just(0.0), st.just(float("nan"))))


@given(values)
def test_within_the_stated_error(array):
    codes, scale = quantise(array)
    found = dequantise(codes, scale)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(array))
    np.testing.assert_array_equal(found == 0, array == 0)
    kept = array > 0
    assert (np.abs(found[kept] - array[kept]) <= array[kept] * (scale["error"] + 1e-12)).all()
    assert codes.max(initial=0) < 4096
    if kept.any():  # both ends are exact
        ends = array[kept].min(), array[kept].max()
        np.testing.assert_allclose((found[kept].min(), found[kept].max()), ends, rtol=1e-9)


@given(array_shapes(max_dims=3), st.sampled_from(["int8", "uint8", "int16", "uint16"]), st.integers(0, 2**32 - 1))
def test_packed_arrays_come_back(shape, dtype, seed):
    info = np.iinfo(dtype)
    array = np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)
    packed = pack(array)
    found = unpack(packed)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
