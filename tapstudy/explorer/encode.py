"""Arrays as text: quantised, deflated, base64. What the page's `decode` reads."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING, ZERO, FIRST = 0, 1, 2  # codes; from FIRST on, equal steps of the logarithm
LEVELS = 4094  # with MISSING and ZERO, 12 bits


def quantise(values: NDArray[np.floating]) -> tuple[NDArray[np.uint16], dict[str, float]]:
    """Logarithms in equal steps between the least and the largest value above 0.

    Returns:
        uint16 codes of the same shape (NaN is `MISSING`, 0 or less `ZERO`), and the scale: the natural logarithms
        `low` and `high`, the number of `levels`, and the greatest relative `error` of a decoded value.
    """
    values = values.astype(np.float64)
    above = values > 0
    low, high = (float(np.log(f(values[above]))) for f in (np.min, np.max)) if above.any() else (0.0, 0.0)
    step = (high - low) / (LEVELS - 1)
    codes = np.where(np.isnan(values), MISSING, ZERO)
    place = np.rint((np.log(values[above]) - low) / step) if step else np.zeros(int(above.sum()))
    codes[above] = FIRST + place.astype(np.int64)
    return codes.astype(np.uint16), {
        "low": low, "high": high, "levels": LEVELS, "error": float(np.expm1(step / 2)),
    }  # fmt: skip


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """An array of 1- or 2-byte integers as text.

    All low bytes come first, then all high bytes: the latter compress well.
    """
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    planes = little.reshape(-1, 1).view(np.uint8).T  # (byte, value)
    data = base64.b64encode(zlib.compress(planes.tobytes(), level=9)).decode("ascii")
    return {"shape": list(values.shape), "dtype": values.dtype.name, "data": data}
