"""Maps at addresses: the files of a local map, all of them or none, and errors before anything is mapped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from landfuse.errors import IncompleteError, MissingExtraError, OutputError
from landfuse.mapping.destination import Destination, inputs_of
from landfuse.rasters.geotiff_writer import Mosaic, write_mosaic, write_raster
from landfuse.rasters.grid import Grid
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def make(destination: Destination) -> None:
    """Two maps, one of them not whole, in a folder."""
    for name in ("t1.tif", "west/t2.tif", "t3.tif.parts/0.tif"):
        path = destination.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_a_path_is_left_as_it_is(tmp_path: Path) -> None:
    destination = Destination(str(tmp_path / "maps"))
    assert (destination.local, destination.address) == (tmp_path / "maps", None)
    with destination.delivery():
        make(destination)
    assert (tmp_path / "maps" / "t3.tif.parts").exists()


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_what_was_made_is_put_at_its_address_at_the_end(scheme: str, memory: Any, tmp_path: Path) -> None:
    address = f"{scheme}{tmp_path}/there/maps/"
    destination, files = Destination(address), fsspec.filesystem(scheme.removesuffix("://"))
    with destination.delivery():
        make(destination)
        assert files.find(f"{tmp_path}/there") == []
    assert files.cat(f"{tmp_path}/there/maps/t1.tif") == b"t1.tif"
    assert files.cat(f"{tmp_path}/there/maps/west/t2.tif") == b"west/t2.tif"
    assert len(files.find(f"{tmp_path}/there")) == 2
    assert list((tmp_path / "data" / "staging").iterdir()) == []


def test_nothing_is_put_if_it_is_interrupted_and_the_next_one_finds_what_was_done(memory: Any) -> None:
    destination = Destination("memory://b/maps")

    def interrupted(error: BaseException) -> None:
        with destination.delivery():
            make(destination)
            raise error

    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt())
    assert memory.find("/b") == []
    assert (Destination("memory://b/maps").local / "t3.tif.parts" / "0.tif").exists()
    assert not Destination("memory://c/maps").local.exists()
    with pytest.raises(IncompleteError):
        interrupted(IncompleteError(Path("t1.tif"), {}, 9))
    assert memory.find("/b") == ["/b/maps/t1.tif", "/b/maps/west/t2.tif"]


def test_files_appear_together_or_not_at_all(memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = type(fsspec.filesystem("file"))
    open_file = files.open

    def full(self: Any, path: str, *rest: Any, **options: Any) -> Any:
        if "t2" in path:
            raise OSError(28, "No space left on device")
        return open_file(self, path, *rest, **options)

    monkeypatch.setattr(files, "open", full)
    destination = Destination(f"file://{tmp_path}/there/maps")
    with pytest.raises(OutputError, match=r"there/maps cannot be written: .*No space left"), destination.delivery():
        make(destination)
    assert [path for path in (tmp_path / "there").rglob("*") if path.is_file()] == []
    assert (destination.local / "t1.tif").exists(), "kept for the next time"


def test_an_address_that_cannot_be_written_to_is_reported_at_once(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, error, message in (
        ("file:///dev/null/maps", OutputError, "file:///dev/null/maps cannot be written"),
        ("nowhere://b/maps", OutputError, "Protocol not known: nowhere"),
        ("s3://b/maps", MissingExtraError, "Install s3fs"),
    ):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(error, match=message), Destination(address).delivery():
            pytest.fail("begun")


# What may be written ------------------------------------------------------------------------------------------------


def write_scene(folder: Path) -> Path:
    """A scene of two tiles whose inputs are of every kind: GeoTIFF, VRT, ENVI, labels, a mask, a list, polygons."""
    folder.mkdir()
    grid = Grid(4, 4, (10, 0, 0, 0, -10, 40), "EPSG:32632")
    values = np.ones((1, 4, 4), np.float32)
    for tile in ("t1", "t2"):
        write_raster(folder / f"a_{tile}.tif", grid, values)
        write_raster(folder / f"source_{tile}.tif", grid, values)
        write_mosaic(folder / f"inner_{tile}.vrt", Mosaic(grid, ["v"]), [(grid.window, folder / f"source_{tile}.tif")])
        write_mosaic(folder / f"b_{tile}.vrt", Mosaic(grid, ["v"]), [(grid.window, folder / f"inner_{tile}.vrt")])
        write_raster(folder / f"labels_{tile}.tif", grid, values[0].astype(np.uint8))
    (folder / "list.csv").write_text("t1\n")
    (folder / "b_t2.tif").symlink_to(folder / "b_t2.vrt")
    text = {
        "name": "two",
        "modalities": {"a": {"path": "a_{tile}.tif"}, "b": {"path": "b_{tile}.vrt"}},
        "labels": {"path": "labels_{tile}.tif"},
        "legend": [{"name": "one", "code": 1}],
        "split": {"kind": "tiles", "lists": {"test": "list.csv"}},
    }
    (folder / "scene.yaml").write_text(json.dumps(text))
    return folder / "scene.yaml"


@pytest.mark.parametrize(
    "name",
    ["a_t1.tif", "a_t2.tif", "b_t2.tif", "inner_t2.vrt", "source_t2.tif", "labels_t2.tif", "list.csv", "scene.yaml"],
)
def test_nothing_goes_over_a_file_of_the_scene(name: str, tmp_path: Path) -> None:
    scene = read_scene_file(write_scene(tmp_path / "in")).open_tile("t1", ["a"])[0]
    assert scene is not None
    linked = tmp_path / "linked"
    linked.hardlink_to((tmp_path / "in" / name).resolve())
    for output in (str(tmp_path / "in" / name), f"file://{tmp_path}/in/{name}", str(linked)):
        destination = Destination(output)
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="is a file that the scene is read from"):
                destination.check([(destination.local, "")], inputs_of(scene), overwrite)
    free = Destination(str(tmp_path / "free.tif"))
    free.check([(free.local, "")], inputs_of(scene))


def test_nothing_goes_over_a_file_that_arrays_were_read_from(tmp_path: Path) -> None:
    write_scene(tmp_path / "in")
    place = tmp_path / "in"
    scene = Scene.from_arrays({"a": place / "a_t1.tif"}, place / "labels_t1.tif", legend=["one"])
    for name in ("a_t1.tif", "labels_t1.tif"):
        with pytest.raises(OutputError, match=f"{name} is a file that the scene is read from"):
            Destination(str(place / name)).check([(place / name, "")], inputs_of(scene), overwrite=True)


@pytest.mark.parametrize("address", [False, True])
def test_what_is_not_known_by_its_sign_is_replaced_only_if_asked(address: bool, memory: Any, tmp_path: Path) -> None:
    destination = Destination("memory://b/maps" if address else str(tmp_path / "maps"))
    path = destination.local / "t1.tif"
    destination.check([(path, "mine")], [])
    if address:
        memory.pipe_file("/b/maps/t1.tif", b"theirs")
    else:
        path.parent.mkdir()
        path.write_bytes(b"theirs")
    destination.check([(path, "theirs")], [])
    with pytest.raises(OutputError, match=r"maps/t1\.tif is there already"):
        destination.check([(path, "mine")], [])
    destination.check([(path, "mine")], [], overwrite=True)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    destination, one, other = Destination(str(tmp_path)), tmp_path / "x_entropy.tif", tmp_path / "y.tif"
    with pytest.raises(OutputError, match=r"x_entropy\.tif would be written twice"):
        destination.check([(one, ""), (other, ""), (one, "")], [])
    with pytest.raises(OutputError, match=r"x_entropy\.tif would be written twice"):
        destination.check([(one, "")], [], others=[one])
    destination.check([(one, "")], [], others=[other])


def test_commands_for_other_tiles_of_an_address_take_nothing_from_each_other(memory: Any) -> None:
    first, second = Destination("memory://b/maps", ["t1"]), Destination("memory://b/maps", ["t2"])
    whole = Destination("memory://b/maps")
    assert len({first.local, second.local, whole.local}) == 3
    with second.delivery():
        second.local.mkdir(parents=True)
        (second.local / "t2.tif").write_bytes(b"2")
        with first.delivery():
            first.local.mkdir(parents=True)
            (first.local / "t1.tif").write_bytes(b"1")
        assert memory.cat("/b/maps/t1.tif") == b"1"
        maps = [second.local / f"t{number}.tif" for number in (1, 2, 3)]
        assert second.present(maps) == {maps[0]}
        with pytest.raises(OutputError, match="is in use"), Destination("memory://b/maps", ["t2"]).delivery():
            pytest.fail("begun")
    assert memory.find("/b") == ["/b/maps/t1.tif", "/b/maps/t2.tif"]
