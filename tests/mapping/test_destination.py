"""Maps at addresses: the files of a local map, all of them or none, and errors before anything is mapped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from landfuse.errors import IncompleteError, MissingExtraError, OutputError
from landfuse.mapping.destination import Destination


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
