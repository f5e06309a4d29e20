"""The compiled library: found, checked and loaded; no torch.

It is optional: where it was not built, PyTorch and NumPy give the same numbers, slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from pathlib import Path

LOG = logging.getLogger(__name__)


@functools.cache
def library(size: str, arguments: type[ctypes.Structure]) -> ctypes.CDLL | None:
    """The library, or None where it cannot be used, which is said once in the log.

    Args:
        size: its function that returns the bytes of its arguments.
        arguments: as they are passed.
    """
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    path = Path(__file__).parent / "native" / f"landfuse_scan.{suffix}"
    try:
        found = ctypes.CDLL(str(path))
        measure = getattr(found, size)
        measure.restype = ctypes.c_int64
        if measure() != ctypes.sizeof(arguments):
            raise OSError("it was built from other sources; install landfuse again")
        return found
    except (OSError, AttributeError) as error:
        _warn(f"cannot be used ({error})" if path.exists() else "was not built when landfuse was installed")
        return None


@functools.cache
def _warn(reason: str) -> None:
    LOG.warning("the compiled kernel %s; PyTorch and NumPy serve, with the same numbers but slower on a CPU", reason)
