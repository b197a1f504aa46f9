"""Decodes arrays as the page does."""

import base64
import zlib

import numpy as np

from tapstudy.explorer.encode import FIRST, MISSING, ZERO


def dequantise(codes, scale):
    """What the page computes from the codes."""
    step = (scale["high"] - scale["low"]) / (scale["levels"] - 1)
    found = np.exp(scale["low"] + (codes.astype(np.float64) - FIRST) * step)
    found[codes == MISSING] = np.nan
    found[codes == ZERO] = 0.0
    return found


def unpack(packed):
    """The array again, as the page reads it."""
    dtype = np.dtype(packed["dtype"])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    planes = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T)
    return planes.view(dtype.newbyteorder("<")).reshape(packed["shape"]).astype(dtype)
