"""Both kinds of .mat files, read by window in the order of axes that MATLAB shows."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from landfuse.errors import GridError, MissingExtraError, MissingFileError, SceneError
from landfuse.rasters import matlab
from landfuse.rasters.decoding import Decoding
from landfuse.rasters.grid import Grid
from landfuse.rasters.matlab import open_mat, read_variable
from landfuse.rasters.windows import Window

H, W, C = 13, 9, 5
CHW = np.random.default_rng(0).integers(-3000, 3000, (C, H, W)).astype(np.int16)
CLASSES = {"f8": "double", "f4": "single", "i2": "int16", "u1": "uint8", "u2": "uint16", "b1": "logical"}

Write = Callable[[Path, Mapping[str, NDArray[Any]]], None]


def write_5(path: Path, variables: Mapping[str, NDArray[Any]]) -> None:
    scipy.io.savemat(path, dict(variables), do_compression=True)


def write_73(path: Path, variables: Mapping[str, NDArray[Any]]) -> None:
    """As MATLAB does: 512 bytes of its own before the HDF5 part, axes reversed, compressed in chunks."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in variables.items():
            item = file.create_dataset(
                name, data=array.T, chunks=tuple(min(4, n) for n in array.T.shape), compression=3
            )
            item.attrs["MATLAB_class"] = np.bytes_(CLASSES[array.dtype.str[1:]])
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")


@pytest.fixture(params=[write_5, write_73], ids=["v5", "v7.3"])
def write(request: pytest.FixtureRequest) -> Write:
    return request.param  # type: ignore[no-any-return]


def by_axes(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """(C, H, W) in another order, by a plain loop."""
    sizes = {"C": C, "H": H, "W": W}
    out = np.empty([sizes[a] for a in axes], array.dtype)
    for c in range(C):
        for h in range(H):
            for w in range(W):
                place = {"C": c, "H": h, "W": w}
                out[tuple(place[a] for a in axes)] = array[c, h, w]
    return out


@pytest.mark.parametrize("axes", ["HWC", "WHC", "CHW", "CWH", "HCW", "WCH"])
def test_every_order_of_axes(write: Write, axes: str, tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, axes), "other": np.zeros((2, 2))})
    raster = open_mat(tmp_path / "x.mat", "data", axes, expected=(H, W))
    assert (raster.bands, raster.dtype, raster.grid) == (C, "int16", Grid(H, W))
    for window in (raster.grid.window, Window(3, 2, 4, 6), Window(12, 8, 1, 1)):
        rows, cols = window.within(raster.grid.window)
        values = raster.read(window)
        assert (values.dtype, values.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(values, CHW[:, rows, cols])


def test_bands_are_chosen_and_ordered(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, "HWC")})
    for bands in ([4], [2, 3, 4], [1, 5], [5, 1, 3], [2, 2]):
        raster = open_mat(str(tmp_path / "x.mat"), "data", "HWC", bands=bands)
        assert raster.bands == len(bands)
        np.testing.assert_array_equal(raster.read(Window(1, 2, 3, 4)), CHW[np.array(bands) - 1, 1:4, 2:6])


@pytest.mark.parametrize("axes", ["HW", "WH"])
def test_two_dimensions(write: Write, axes: str, tmp_path: Path) -> None:
    codes = (CHW[0] % 7).astype(np.uint8)
    write(tmp_path / "x.mat", {"gt": codes if axes == "HW" else codes.T})
    raster = open_mat(tmp_path / "x.mat", "gt", axes)
    assert (raster.bands, raster.dtype) == (1, "uint8")
    np.testing.assert_array_equal(raster.read(raster.grid.window), codes[None])
    np.testing.assert_array_equal(read_variable(tmp_path / "x.mat", "gt", axes), codes)
    plain = read_variable(tmp_path / "x.mat", "gt")
    np.testing.assert_array_equal(plain, codes if axes == "HW" else codes.T)
    assert plain.dtype == np.uint8


def test_values_are_decoded(write: Write, tmp_path: Path) -> None:
    array = np.array([[1.0, np.nan, -9999.0], [np.inf, 20.0, 0.0]], np.float32)
    write(tmp_path / "x.mat", {"z": array})
    raster = open_mat(tmp_path / "x.mat", "z", "HW", decoding=Decoding(nodata=-9999, scale=2, offset=1))
    nan = np.nan
    np.testing.assert_array_equal(raster.read(raster.grid.window), [[[3, nan, nan], [nan, 41, 1]]])
    assert len(raster.undeclared(raster.grid.window)) == 2
    assert len(raster.undeclared(Window(1, 1, 1, 2))) == 0
    assert raster.dtype == "float32"


def test_class_of_whole_doubles_is_double(write: Write, tmp_path: Path) -> None:
    # Version 5 may store doubles that are whole numbers in fewer bytes; a model must not see that as another type.
    write(tmp_path / "x.mat", {"z": np.arange(6.0).reshape(2, 3)})
    assert open_mat(tmp_path / "x.mat", "z", "HW").dtype == "float64"


def test_pickles_and_reads_from_threads(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, "HWC")})
    raster = open_mat(tmp_path / "x.mat", "data", "HWC")
    raster.read(raster.grid.window)
    assert len(pickle.dumps(raster)) < 1000
    again = pickle.loads(pickle.dumps(raster))
    windows = [Window(r, c, 3, 3) for r in range(10) for c in range(6)] * 3
    with ThreadPoolExecutor(4) as pool:
        for window, values in zip(windows, pool.map(again.read, windows), strict=True):
            rows, cols = window.within(again.grid.window)
            np.testing.assert_array_equal(values, CHW[:, rows, cols])


def test_old_files_are_read_once_and_again_when_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "x.mat", []
    load = scipy.io.loadmat
    monkeypatch.setattr(scipy.io, "loadmat", lambda *a, **k: (reads.append(k["variable_names"][0]), load(*a, **k))[1])
    write_5(path, {"a": np.zeros((40, 50)), "b": np.ones((40, 50))})
    a, b = open_mat(path, "a", "HW"), open_mat(path, "b", "HW")
    window = Window(0, 0, 2, 2)
    for raster in (a, b, a, b):
        raster.read(window)
    assert reads == ["a", "b"]
    monkeypatch.setattr(matlab, "CACHE_BYTES", 20_000)  # one array of 16,000 bytes fits
    for raster in (a, b, b, a):
        raster.read(window)
    assert reads == ["a", "b", "b", "a"]
    write_5(path, {"a": np.full((40, 50), 7.5), "padding": np.zeros(3)})
    assert a.read(window)[0, 0, 0] == 7.5
    with pytest.raises(ValueError, match="read-only"):
        read_variable(path, "a")[0, 0] = 1


def test_new_files_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_73(tmp_path / "x.mat", {"data": by_axes(CHW, "HWC")})
    raster = open_mat(tmp_path / "x.mat", "data", "HWC", bands=[2, 3])
    asked: list[tuple[slice, ...]] = []
    get = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: (asked.append(key), get(self, key))[1])
    raster.read(Window(1, 2, 3, 4))
    assert asked == [(slice(1, 3), slice(2, 6), slice(1, 4))]


def test_logical_and_sparse(tmp_path: Path) -> None:
    mask = CHW[0] > 0
    write_73(tmp_path / "new.mat", {"mask": mask})
    scipy.io.savemat(tmp_path / "old.mat", {"mask": mask, "sparse": scipy.sparse.csc_matrix(mask.astype(float))})
    for name, variable in (("new.mat", "mask"), ("old.mat", "mask"), ("old.mat", "sparse")):
        np.testing.assert_array_equal(read_variable(tmp_path / name, variable), mask)
    raster = open_mat(tmp_path / "old.mat", "sparse", "HW")
    np.testing.assert_array_equal(raster.read(Window(2, 3, 4, 5))[0], mask[2:6, 3:8])


# ---- within structs and cells, as MATLAB names it


def nested_5(path: Path) -> None:
    """As scipy writes them: structs are records of arrays, cells arrays of objects."""
    flights = np.empty((1, 2), object)
    for number in range(2):
        flights[0, number] = {"x": np.arange(2.0), "z": by_axes(CHW, "HWC")[..., number : number + 2] / 2, "info": "m"}
    boxes = np.empty((2, 2), object)
    for row, col in np.ndindex(2, 2):
        boxes[row, col] = np.full((2, 3), 10.0 * row + col)
    tiles = np.zeros((1, 3), [("codes", object)])
    for number in range(3):
        tiles[0, number]["codes"] = np.full((H, W), number, np.uint8)
    whole = np.round(CHW[0] / 1000).astype(float)  # version 5 may hold them in a byte each; they are doubles
    hsi = {"Data": by_axes(CHW, "HWC"), "Lidar": flights, "labels": {"codes": whole, "valid": CHW[0] > 0}, "id": "a"}
    scipy.io.savemat(path, {"hsi": hsi, "boxes": boxes, "tiles": tiles}, do_compression=True)


def nested_73(path: Path) -> None:
    """As MATLAB lays them out: structs are groups, cells hold references, arrays of structs do in each field."""

    def put(group: h5py.Group, name: str, array: NDArray[Any]) -> h5py.Dataset:
        item = group.create_dataset(name, data=array.T.astype(np.uint8) if array.dtype == bool else array.T)
        item.attrs["MATLAB_class"] = np.bytes_(CLASSES[array.dtype.str[1:]])
        return item

    def struct(group: h5py.Group, name: str) -> h5py.Group:
        made = group.create_group(name)
        made.attrs["MATLAB_class"] = np.bytes_("struct")
        return made

    with h5py.File(path, "w", userblock_size=512) as file:
        hsi, held = struct(file, "hsi"), file.create_group("#refs#")
        put(hsi, "Data", by_axes(CHW, "HWC"))
        references = np.empty((2, 1), h5py.ref_dtype)
        for number in range(2):
            flight = struct(held, f"flight{number}")
            put(flight, "x", np.arange(2.0))
            put(flight, "z", by_axes(CHW, "HWC")[..., number : number + 2] / 2)
            references[number, 0] = flight.ref
        hsi.create_dataset("Lidar", data=references).attrs["MATLAB_class"] = np.bytes_("cell")
        labels = struct(hsi, "labels")
        put(labels, "codes", np.round(CHW[0] / 1000).astype(float))
        put(labels, "valid", CHW[0] > 0)
        boxes = np.empty((2, 2), h5py.ref_dtype)
        for row, col in np.ndindex(2, 2):
            boxes[col, row] = put(held, f"box{row}{col}", np.full((2, 3), 10.0 * row + col)).ref
        file.create_dataset("boxes", data=boxes).attrs["MATLAB_class"] = np.bytes_("cell")
        tiles = np.empty((3, 1), h5py.ref_dtype)
        for number in range(3):
            tiles[number, 0] = put(held, f"tile{number}", np.full((H, W), number, np.uint8)).ref
        struct(file, "tiles").create_dataset("codes", data=tiles)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")


@pytest.fixture(params=[nested_5, nested_73], ids=["v5", "v7.3"])
def nested(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "x.mat")
    return tmp_path / "x.mat"


def test_what_structs_and_cells_hold_is_read_by_its_name(nested: Path) -> None:
    window = Window(3, 2, 4, 6)
    for name, expected, dtype in (
        ("hsi.Data", CHW, "int16"),
        ("hsi.Lidar{1}.z", CHW[:2] / 2, "float64"),
        ("hsi.Lidar{2}.z", CHW[1:3] / 2, "float64"),
        ("hsi.Lidar(2).z", CHW[1:3] / 2, "float64"),
    ):
        raster = open_mat(nested, name, "HWC", expected=(H, W))
        assert (raster.bands, raster.dtype) == (len(expected), dtype)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(raster)).read(window), expected[:, 3:7, 2:8])
    np.testing.assert_array_equal(read_variable(nested, "hsi.labels.codes", "HW"), np.round(CHW[0] / 1000))
    assert open_mat(nested, "hsi.labels.codes", "HW").dtype == "float64"
    mask = read_variable(nested, "hsi.labels.valid")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, CHW[0] > 0)
    assert open_mat(nested, "hsi.labels.valid", "HW").dtype == "uint8"
    for number, value in enumerate((0, 10, 1, 11), 1):
        np.testing.assert_array_equal(read_variable(nested, f"boxes{{{number}}}"), np.full((2, 3), value))
    for number in (1, 2, 3):
        np.testing.assert_array_equal(read_variable(nested, f"tiles({number}).codes"), np.full((H, W), number - 1))


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("hsi", "`hsi` of .* is of the class struct", "hsi.Data, hsi.Lidar, hsi.labels"),
        ("boxes", "`boxes` of .* is of the class cell", "`boxes{1}` to `boxes{4}`"),
        ("hsi.labels", "`hsi.labels` of .* is of the class struct", "hsi.labels.codes, hsi.labels.valid"),
        ("hsi.Lidar", "`hsi.Lidar` of .* is of the class cell", "`hsi.Lidar{1}` to `hsi.Lidar{2}`"),
        ("hsi.data", "`hsi` of .* has no field `data`", "hsi.Data"),
        ("hsi.Data.x", "`hsi.Data` of .* has no field `x`", "`hsi.Data`"),
        ("hsi.Lidar.z", "`hsi.Lidar` of .* has no field `z`", "`hsi.Lidar{1}` to"),
        ("hsi.Lidar{0}.z", "has 2 elements, and number 0 is asked for", "counted from 1"),
        ("hsi.Lidar{3}.z", "has 2 elements, and number 3 is asked for", "counted from 1"),
        ("hsi.Data{1}", "`hsi.Data` of .* is neither a cell nor an array of structs", "hsi.Data"),
        ("tiles.codes", "`tiles` of .* is an array of 3 structs", "`tiles{1}` to `tiles{3}`"),
        ("his.Data", "holds no variable `his.Data`", "hsi"),
        ("hsi..Data", r"holds no variable `hsi\.\.Data`", "hsi"),
    ],
)
def test_a_name_that_leads_nowhere_is_reported(nested: Path, name: str, message: str, expected: str) -> None:
    with pytest.raises(SceneError, match=message) as caught:
        read_variable(nested, name)
    assert expected in caught.value.expected.replace(", hsi.id", "")


# ---- bad input


def test_missing_file(tmp_path: Path) -> None:
    write_5(tmp_path / "Houston.mat", {"a": np.zeros((2, 2))})
    with pytest.raises(MissingFileError, match=r"houston\.mat") as caught:
        open_mat(tmp_path / "houston.mat", "a", "HW")
    assert "Houston.mat" in caught.value.do


def test_missing_variable_names_the_others(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, "HWC"), "gt": np.zeros((H, W))})
    for read in (
        lambda: open_mat(tmp_path / "x.mat", "lidar", "HW"),
        lambda: read_variable(tmp_path / "x.mat", "lidar"),
    ):
        with pytest.raises(SceneError, match="no variable `lidar`") as caught:
            read()
        assert "data (13 x 9 x 5 int16)" in caught.value.expected
        assert "gt (13 x 9 double)" in caught.value.expected


def test_axes_that_do_not_fit(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, "WHC"), "one": by_axes(CHW, "CHW"), "four": np.zeros((2, 3, 4, 5))})
    path = tmp_path / "x.mat"
    with pytest.raises(SceneError, match="9 x 13 x 5 in MATLAB's order, but 2 axes") as caught:
        open_mat(path, "data", "HW", expected=(H, W))
    assert caught.value.do == "write `axes: WHC`"
    with pytest.raises(GridError, match="by the axes HWC, 9 x 13 px") as caught:
        open_mat(path, "data", "HWC", expected=(H, W))
    assert caught.value.do == "write `axes: WHC`"
    with pytest.raises(GridError) as caught:
        open_mat(path, "one", "HWC", expected=(H, W))
    assert caught.value.do == "write `axes: CHW`"
    with pytest.raises(GridError, match="20 x 30") as caught:
        open_mat(path, "data", "WHC", expected=(20, 30))
    assert "no order of its axes" in caught.value.do
    for axes in ("HHC", "XYZ", "", "hwc", "HWCC"):
        with pytest.raises(SceneError, match="given as") as caught:
            open_mat(path, "data", axes)
        assert "WHC" in caught.value.do
    with pytest.raises(SceneError, match="2 x 3 x 4 x 5"):
        open_mat(path, "four", "HWC")
    with pytest.raises(SceneError, match="two dimensions"):
        read_variable(path, "data", "HW")


@pytest.mark.parametrize("bands", [[0], [1, 6]])
def test_bands_that_are_not_there(write: Write, bands: list[int], tmp_path: Path) -> None:
    write(tmp_path / "x.mat", {"data": by_axes(CHW, "HWC")})
    with pytest.raises(SceneError, match="band"):
        open_mat(tmp_path / "x.mat", "data", "HWC", bands=bands)


def test_not_numeric_in_old_files(tmp_path: Path) -> None:
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = np.zeros(3), "a"
    mixed = {"real": np.ones((2, 2)), "complex": np.ones((2, 2)) * 1j}
    variables = {"cell": cell, "struct": {"x": 1.0}, "text": "abc", "complex": np.ones((2, 2)) * 1j, "mixed": mixed}
    scipy.io.savemat(tmp_path / "x.mat", variables)
    for name in ("cell", "struct", "text"):
        with pytest.raises(SceneError, match=f"`{name}`.*class (cell|struct|char)"):
            open_mat(tmp_path / "x.mat", name, "HW")
    for name in ("complex", "mixed.complex"):
        with pytest.raises(SceneError, match="class complex"):
            read_variable(tmp_path / "x.mat", name)
    assert read_variable(tmp_path / "x.mat", "mixed.real").dtype == np.float64


def test_not_numeric_in_new_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_group("struct").attrs["MATLAB_class"] = np.bytes_("struct")
        file.create_group("sparse").attrs["MATLAB_sparse"] = 4
        file.create_dataset("cell", (1, 2), h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
        file.create_dataset("text", data=np.zeros((1, 3), "u2")).attrs["MATLAB_class"] = np.bytes_("char")
        file.create_dataset("complex", (2, 2), np.dtype([("real", "f8"), ("imag", "f8")]))
        empty = file.create_dataset("empty", data=np.array([0, 0], "u8"))
        empty.attrs["MATLAB_class"], empty.attrs["MATLAB_empty"] = np.bytes_("double"), 1
    for name in ("struct", "sparse", "cell", "text", "complex"):
        with pytest.raises(SceneError, match=f"`{name}`.*of the class"):
            open_mat(tmp_path / "x.mat", name, "HW")
    with pytest.raises(SceneError, match="empty: 0 x 0"):
        open_mat(tmp_path / "x.mat", "empty", "HW")


@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_old_files(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.mat"
    array = np.random.default_rng(1).random((20, 30))
    scipy.io.savemat(path, {"data": array}, do_compression=compressed)
    raw = path.read_bytes()
    for length in [0, 1, 4, 50, 126, 127, 128, 130, 136, 140, 170, *range(180, len(raw) - 1, 400), len(raw) - 9]:
        path.write_bytes(raw[:length])
        with pytest.raises(SceneError, match=r"x\.mat"):
            open_mat(path, "data", "HW").read(Window(0, 0, 20, 30))


def test_truncated_new_files(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    write_73(path, {"data": np.random.default_rng(1).random((20, 30))})
    raw = path.read_bytes()
    for length in [*range(0, len(raw) - 1, 500), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(SceneError, match=r"x\.mat"):
            open_mat(path, "data", "HW").read(Window(0, 0, 20, 30))


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for content in (b"Not Found\n" * 100, bytes(1000), b"\x89PNG\r\n" + bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(SceneError, match=r"x\.mat"):
            open_mat(path, "data", "HW")


def test_a_table_of_samples_is_named_as_one(tmp_path: Path) -> None:
    write_5(tmp_path / "x.mat", {"data": np.ones((50, 7))})
    for axes, expected in (("HWC", None), ("HWC", (H, W)), ("HW", (H, W))):
        with pytest.raises(SceneError, match="a table of 50 samples of 7 values each, name the image"):
            open_mat(tmp_path / "x.mat", "data", axes, expected=expected)
    with pytest.raises(SceneError, match=r"write `axes: WH`$"):
        open_mat(tmp_path / "x.mat", "data", "HW", expected=(7, 50))


def test_a_file_of_version_7_3_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_73(tmp_path / "x.mat", {"x": np.ones((2, 3))})
    write_5(tmp_path / "y.mat", {"x": np.ones((2, 3))})
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert open_mat(tmp_path / "y.mat", "x", "HW").bands == 1
    with pytest.raises(MissingExtraError, match=r'pip install "landfuse\[matlab\]"'):
        open_mat(tmp_path / "x.mat", "x", "HW")
