"""Memory of a command, on the C library that Linux systems have."""

from __future__ import annotations

import ctypes
import os

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_large_buffers() -> bool:
    """Have the C library keep the memory of large buffers for the next one, for the rest of the process.

    It otherwise hands such memory back at once, and the system clears it page by page when it is asked for anew: up to
    a fifth of a full pass on a processor.

    Returns:
        Whether it will: the C library is glibc, and nobody has set its options from outside.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return all(set_option(ctypes.c_int(option), ctypes.c_int(value)) for option, value in options.items())
