""".mat files, version 5 (and older) and 7.3, as rasters. The only scipy.io and h5py import.

Version 7.3 is HDF5: a window is read without the rest, and the file has the axes in reverse order. Older versions can
only be read whole; arrays are kept, in each process up to `CACHE_BYTES`. For both versions, axes are named as MATLAB
shows them, and so is what structs and cells hold: `hsi.Lidar{1}.z`.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import GridError, LandfuseError, MissingFileError, SceneError
from landfuse.extras import missing_extra
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.grid import Grid
from landfuse.rasters.mat_fields import ArrayNode, Hdf5Node, follow, inside, parts_of
from landfuse.rasters.windows import Window

CACHE_BYTES = 4 * 1024**3
"""Arrays of version 5 files kept in memory, per process; the least recently used go first, the latest one stays."""

_BROKEN = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError),
    *(NotImplementedError, AttributeError, RuntimeError, struct.error, zlib.error),
)
# What scipy and h5py raise on a file that was cut off or is no .mat file: nearly anything.

_TYPES = {"double": "float64", "single": "float32", "logical": "uint8", "sparse": "float64"} | {
    name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
}


@dataclass(frozen=True)
class _Header:
    """What is known of a variable before it is read."""

    shape: tuple[int, ...]  # in MATLAB's order
    dtype: str  # "" if it is not numeric
    kind: str  # as MATLAB calls it


@dataclass(frozen=True)
class MatRaster:
    """One variable of a .mat file; a `Raster`. Made by `open_mat`; picklable, and safe to read from several threads.

    Args:
        variable: its name, e.g. `hsi` or `hsi.Data`.
        axes: of the variable, `H`, `W` and possibly `C`.
        band_numbers: of the bands in use, from 1.
        grid: H x W pixels; without a georeference, of which a .mat file says nothing, until it is replaced.
        dtype: in MATLAB's terms, e.g. `float64` for a double.
    """

    path: str
    variable: str
    axes: str
    decoding: Decoding
    band_numbers: tuple[int, ...]
    grid: Grid
    dtype: str
    _hdf5: bool = field(default=False, repr=False)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.band_numbers)

    def with_bands(self, places: Sequence[int]) -> MatRaster:
        """Some of the bands, in this order; places count from 0."""
        return replace(self, band_numbers=tuple(self.band_numbers[place] for place in places))

    def read(self, window: Window) -> NDArray[np.float32]:
        """See `Raster`; raises a SceneError if the file cannot be read there."""
        return self.decoding(self._numbers(window))

    def undeclared(self, window: Window) -> NDArray[np.floating]:
        """See `Decoding.undeclared`."""
        return self.decoding.undeclared(self._numbers(window))

    def read_codes(self) -> NDArray[np.generic]:
        """The variable whole, as the codes of labels: (H, W)."""
        return read_variable(self.path, self.variable, self.axes)

    def _numbers(self, window: Window) -> NDArray[Any]:
        """(C, height, width) as they are in the file."""
        first, last = min(self.band_numbers) - 1, max(self.band_numbers)
        rows, cols = window.within(self.grid.window)
        ranges = {"H": rows, "W": cols, "C": slice(first, last)}
        part = tuple(ranges[axis] for axis in self.axes)
        if self._hdf5:
            with _hdf5_node(self.path, self.variable) as node:
                numbers = node.value[part[::-1]].transpose()
        else:
            numbers = _cache.get(self.path, self.variable)[part]
        if "C" not in self.axes:
            return np.ascontiguousarray(_ordered(numbers, self.axes, "HW"))[None]
        numbers = _ordered(numbers, self.axes, "CHW")
        wanted = np.array(self.band_numbers) - 1 - first
        if wanted.size != last - first or (np.diff(wanted) != 1).any():
            numbers = numbers[wanted]
        return np.ascontiguousarray(numbers)


def open_mat(
    path: str | Path,
    variable: str,
    axes: str,
    *,
    decoding: Decoding | None = None,
    bands: Sequence[int] | None = None,
    expected: tuple[int, int] | None = None,
) -> MatRaster:
    """Opens one variable of a .mat file; reads its header only, except for structs and cells of older versions.

    Args:
        path: the file, of version 4, 5, 6, 7 or 7.3.
        variable: its name, as `whos` in MATLAB lists it, or what it holds: `hsi.Data`, `hsi.Lidar{1}.z`.
        axes: one letter for each of its dimensions, in the order in which MATLAB shows them: `HWC`, `CHW`, `HW`, ...
        bands: numbers of the bands to use, from 1; all by default.
        expected: height and width that it should have, if known; helps to name the right axes in messages.

    Raises:
        MissingFileError: if there is no such file.
        SceneError: if it is not a .mat file or cut off, lacks the variable, or the variable is not numeric, does not
            have the named axes, or lacks a band.
        GridError: if it does not have the expected height and width.
    """
    path = str(path)
    hdf5, header = _header(path, variable)
    what = f"`{variable}` of {path}"
    shape = header.shape
    if sorted(axes) not in (sorted("HW"), sorted("HWC")):
        raise SceneError(
            f"the axes of {what} are given as {axes!r}", "H and W, and C if it has bands, each once", _advice(shape)
        )
    if len(axes) != len(shape):
        raise SceneError(
            f"{what} has the shape {_shown(shape)} in MATLAB's order, but {len(axes)} axes are named: {axes}",
            "one letter for each dimension, as MATLAB shows them",
            _advice(shape, expected),
        )
    size = dict(zip(axes, shape, strict=True))
    if expected is not None and (size["H"], size["W"]) != expected:
        raise GridError(
            f"{what} has the shape {_shown(shape)} in MATLAB's order: by the axes {axes}, {size['H']} x {size['W']} px",
            f"{expected[0]} x {expected[1]} px (rows x columns)",
            _advice(shape, expected, axes),
        )
    if not all(shape):
        raise SceneError(f"{what} is empty: {_shown(shape)}", "at least one pixel", "check the variable's name")
    count = size.get("C", 1)
    numbers = tuple(bands or range(1, count + 1))
    wrong = [number for number in numbers if not 1 <= number <= count]
    if wrong:
        raise SceneError(
            f"{what} lacks the band{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong))}",
            f"numbers from 1 to {count}, since by the axes {axes} it has {count} bands",
            "correct `bands`, or `axes`",
        )
    grid = Grid(size["H"], size["W"])
    return MatRaster(path, variable, axes, decoding or Decoding(), numbers, grid, header.dtype, hdf5)


def read_variable(path: str | Path, variable: str, axes: str | None = None) -> NDArray[Any]:
    """Reads one numeric variable whole, for labels and masks; raises as `open_mat` does.

    Returns:
        (H, W) if `axes` are named (`HW` or `WH`), else in MATLAB's order of axes; in the stored type. It may be shared:
        do not write into it.
    """
    path = str(path)
    hdf5, header = _header(path, variable)
    if axes is not None and (sorted(axes) != sorted("HW") or len(header.shape) != 2):
        raise SceneError(
            f"`{variable}` of {path} has the shape {_shown(header.shape)}, and its axes are given as {axes}",
            "two dimensions, H and W",
            "name the variable that holds one code for each pixel, and its axes HW or WH",
        )
    if hdf5:
        with _hdf5_node(path, variable) as node:
            array: NDArray[Any] = node.value[()].transpose()
    else:
        array = _cache.get(path, variable)
    return array if axes is None else _ordered(array, axes, "HW")


def _ordered(array: NDArray[Any], axes: str, order: str) -> NDArray[Any]:
    return array.transpose([axes.index(axis) for axis in order])


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _advice(shape: tuple[int, ...], expected: tuple[int, int] | None = None, given: str = "") -> str:
    """Which axes to name instead."""
    letters = {2: "HW", 3: "HWC"}.get(len(shape))
    if letters is None:
        return f"name a variable of 2 or 3 dimensions; this one has {len(shape)}"
    orders = ["".join(order) for order in itertools.permutations(letters)]
    table = ""
    if len(shape) == 2:
        table = (
            f"; if it is a table of {shape[0]} samples of {shape[1]} values each, name the image that they were taken "
            "from: samples without a place cannot be mapped"
        )
    if expected is not None:
        orders = [order for order in orders if (shape[order.index("H")], shape[order.index("W")]) == expected]
        if not orders:
            return f"no order of its axes gives {expected[0]} x {expected[1]} px: check that it is of this scene{table}"
        table = ""
    orders = [order for order in orders if order != given]
    return "write `axes: " + "`, or `axes: ".join(orders) + "`" if expected else f"one of {', '.join(orders)}{table}"


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Converts what the libraries raise on a broken file."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except LandfuseError:
        raise
    except FileNotFoundError:
        raise _missing(path) from None
    except PermissionError:
        raise SceneError(f"{path} may not be read", "permission to read it", "ask its owner") from None
    except (*_BROKEN, MatReadError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SceneError(
            f"{path} cannot be read as a .mat file: {reason[:200]}",
            "a whole .mat file of version 5 or 7.3",
            "copy or download it again; it may have been cut off",
        ) from None


def _missing(path: str) -> MissingFileError:
    beside = sorted(p.name for p in Path(path).parent.glob("*.mat"))[:8]
    return MissingFileError(
        f"there is no file {path}", "a .mat file", f"beside it are {', '.join(beside)}" if beside else "check the path"
    )


def _hdf5() -> Any:
    """The library; most landfuse is installed without it."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    return h5py


def _is_hdf5(path: str) -> bool:
    with Path(path).open("rb") as file:
        return any(file.seek(start) == start and file.read(8) == b"\x89HDF\r\n\x1a\n" for start in (0, 512, 1024, 2048))


def _header(path: str, variable: str) -> tuple[bool, _Header]:
    """Whether a file is of version 7.3, and the header of a variable, which is found to be numeric."""
    if not Path(path).is_file():
        raise _missing(path)
    with _readable(path):
        hdf5 = _is_hdf5(path)
        found = _hdf5_headers(path) if hdf5 else _old_headers(path)
        top = parts_of(variable)[0]
        if variable not in found and top in found:
            if hdf5:
                with _hdf5_node(path, variable) as node:
                    found = {variable: _hdf5_header(node.value)}
            else:
                array = _cache.get(path, variable)
                found = {variable: _Header(array.shape, array.dtype.name, array.dtype.name)}
    if variable not in found:
        listed = ", ".join(f"{name} ({_shown(h.shape)} {h.kind})" for name, h in found.items())
        raise SceneError(
            f"{path} holds no variable `{variable}`",
            f"one of: {listed or 'nothing; it is empty'}",
            "correct `variable`",
        )
    header = found[variable]
    if header.kind in ("cell", "struct"):
        if not hdf5:
            raise _not_numeric(path, variable, header.kind, inside(_old_node(path, variable), variable))
        with _hdf5_node(path, variable) as node:
            raise _not_numeric(path, variable, header.kind, inside(node, variable))
    if not header.dtype:
        raise _not_numeric(path, variable, header.kind)
    return hdf5, header


def _not_numeric(path: str, variable: str, kind: str, held: str = "") -> SceneError:
    do = "in MATLAB, save it as `double`, `single` or an integer class (`full` if sparse, `abs` if complex)"
    found = f"`{variable}` of {path} is of the class {kind}"
    return SceneError(found, held or "an array of real numbers", "name what it holds as `variable`" if held else do)


@contextmanager
def _hdf5_node(path: str, variable: str) -> Iterator[Hdf5Node]:
    with _readable(path), _hdf5().File(path, "r") as file:
        if variable in file:  # whatever it is called
            yield Hdf5Node(file, file[variable])
        else:
            yield follow(Hdf5Node(file, file[parts_of(variable)[0]]), variable, path)


def _old_node(path: str, variable: str) -> ArrayNode:
    import scipy.io

    with _readable(path):
        top, steps = parts_of(variable)
        # Whole doubles may be stored in a byte each. The class of a variable is in its header; that of a field is only
        # known if scipy converts it, which drops imaginary parts with a warning.
        with warnings.catch_warnings(record=True) as dropped:
            warnings.simplefilter("always", np.exceptions.ComplexWarning)
            whole = scipy.io.loadmat(path, variable_names=[top], mat_dtype=bool(steps))
        if dropped:
            stored = follow(ArrayNode(scipy.io.loadmat(path, variable_names=[top])[top]), variable, path)
            if stored.value.dtype.kind == "c":
                return stored
        return follow(ArrayNode(whole[top]), variable, path)


def _old_headers(path: str) -> dict[str, _Header]:
    import scipy.io

    return {
        str(name): _Header(tuple(int(n) for n in shape), _TYPES.get(str(kind), ""), str(kind))
        for name, shape, kind in scipy.io.whosmat(path)
    }


def _hdf5_headers(path: str) -> dict[str, _Header]:
    with _hdf5().File(path, "r") as file:
        return {name: _hdf5_header(item) for name, item in file.items() if not name.startswith("#")}


def _hdf5_header(item: Any) -> _Header:
    kind = item.attrs.get("MATLAB_class", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if hasattr(item, "keys"):
        return _Header((), "", "sparse" if "MATLAB_sparse" in item.attrs else kind or "struct")
    if item.attrs.get("MATLAB_empty", 0):
        return _Header(tuple(int(n) for n in np.ravel(item[()])), _TYPES.get(kind, ""), kind)
    shape = tuple(int(n) for n in item.shape[::-1])
    if item.dtype.kind not in "iufb":
        return _Header(shape, "", "complex" if item.dtype.names else kind or str(item.dtype))
    # Other programs write .mat files without MATLAB's attributes; their numbers are as the file stores them.
    return _Header(shape, _TYPES.get(kind, "") if kind else str(item.dtype), kind or str(item.dtype))


class _Cache:
    """Arrays of version 5 files, by path, state and name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: OrderedDict[tuple[object, ...], NDArray[Any]] = OrderedDict()

    def get(self, path: str, variable: str) -> NDArray[Any]:
        with _readable(path), self._lock:  # held while reading, so that threads that want one variable read it once
            status = Path(path).stat()
            key = (path, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, variable)
            if key not in self._arrays:
                self._arrays[key] = _read_old(path, variable)
            self._arrays.move_to_end(key)
            while len(self._arrays) > 1 and sum(a.nbytes for a in self._arrays.values()) > CACHE_BYTES:
                self._arrays.popitem(last=False)
            return self._arrays[key]

    def renew_lock(self) -> None:
        """A process that was forked while a thread was reading would wait for ever."""
        self._lock = threading.Lock()


_cache = _Cache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.renew_lock)


def _read_old(path: str, variable: str) -> NDArray[Any]:
    node = _old_node(path, variable)
    array: NDArray[Any] = node.value.toarray() if hasattr(node.value, "toarray") else node.value  # sparse
    if node.size:
        raise _not_numeric(path, variable, "struct" if node.fields else "cell", inside(node, variable))
    if array.dtype.kind not in "iufb":
        kind = {"c": "complex", "U": "char"}.get(array.dtype.kind, str(array.dtype))
        raise _not_numeric(path, variable, kind)
    array = array.view(np.uint8) if array.dtype == bool else array  # logical
    array.flags.writeable = False
    return array
