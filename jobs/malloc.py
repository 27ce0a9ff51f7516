"""How the C library hands memory to tensors on a CPU."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""From malloc.h."""


def keep_memory() -> None:
    """Have glibc keep what a step frees for the next one.

    By default it returns every large tensor to the system at once, and each step gets it back page
    by page, which can cost more than the arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
