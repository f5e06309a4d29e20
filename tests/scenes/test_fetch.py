"""`landfuse fetch` against a server on loopback: interrupted, wrong, full, gone."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from landfuse import download as module
from landfuse.errors import LandfuseError, MissingFileError, OutputError, SceneError, SettingsError
from landfuse.scenes.benchmarks import place_folder, places
from landfuse.scenes.fetch import NOTE, fetch
from landfuse.scenes.scene_file import read_scene_file
from landfuse.scenes.scene_keys import data_folder

DATA = np.random.default_rng(0).bytes(300_000)


class Server:
    """Serves files under its address, and notes what was asked for. `cut`: break off after so many bytes, once for each
    number. `ranges`: whether it can begin in the middle."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: list[int] = []
        self.ranges = True
        self.status: list[int] = []
        self.kind = "application/octet-stream"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        if self.status:
            request.send_error(self.status.pop(0))
            return
        data = self.files.get(request.path.lstrip("/").split("?")[0])
        if data is None:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(data):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Type", self.kind)
        request.end_headers()
        request.wfile.write(data[start : start + self.cut.pop(0)] if self.cut else data[start:])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "PATIENCE", (0.0, 0.0))
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    served = Server()
    served.files["a.bin"] = DATA
    yield served
    served.close()


def scene(folder: Path, *files: dict[str, Any], manual: str = "") -> Path:
    text = {
        "name": "far",
        "title": "Far away [1]",
        "licence": "CC-BY-4.0",
        "citation": "Somebody 2024",
        "address": "https://example.org",
        "root": "${LANDFUSE_DATA}/far",
        "modalities": {"a": {"path": "a.bin"}},
        "fetch": {"files": list(files), "manual": manual},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scene.yaml").write_text(yaml.safe_dump(text))
    return folder / "scene.yaml"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "far"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def wanted(server: Server, **more: Any) -> dict[str, Any]:
    return {"address": f"{server.address}/a.bin", "sha256": sha(DATA), "size": len(DATA), **more}


# It gets files ------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server: Server, root: Path, tmp_path: Path) -> None:
    file = read_scene_file(scene(tmp_path, wanted(server)))
    reported: list[tuple[int, int]] = []
    result = fetch(file, lambda name: lambda done, total: reported.append((done, total)))
    assert (root / "a.bin").read_bytes() == DATA
    assert names(root) == {"a.bin", NOTE}
    assert (result.downloaded, result.there, result.missing) == (["a.bin"], [], [])
    assert reported[0] == (0, len(DATA))
    assert reported[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    again = fetch(file)
    assert (again.downloaded, again.there) == ([], ["a.bin"])
    assert len(server.asked) == 1


def test_an_interrupted_download_goes_on(server: Server, root: Path, tmp_path: Path) -> None:
    server.cut = [120_000, 50_000]
    fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert (root / "a.bin").read_bytes() == DATA
    assert server.asked == [("/a.bin", None), ("/a.bin", "bytes=120000-"), ("/a.bin", "bytes=170000-")]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server: Server, root: Path, tmp_path: Path) -> None:
    file = read_scene_file(scene(tmp_path, wanted(server)))
    server.cut = [100_000, 30_000, 20_000]
    with pytest.raises(MissingFileError, match="150,000 bytes are there, and the same command continues"):
        fetch(file)
    assert not (root / "a.bin").exists()
    server.asked.clear()
    fetch(file)
    assert server.asked == [("/a.bin", "bytes=150000-")]
    assert (root / "a.bin").read_bytes() == DATA
    assert names(root) == {"a.bin", NOTE}


@pytest.mark.parametrize("known", [True, False])
def test_a_link_in_the_place_of_the_part_is_not_followed(
    known: bool, server: Server, root: Path, tmp_path: Path
) -> None:
    root.mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (root / ".a.bin.part").symlink_to(tmp_path / "victim")
    fetch(read_scene_file(scene(tmp_path, wanted(server, **({} if known else {"sha256": None})))))
    assert (tmp_path / "victim").read_text() == "mine"
    assert (root / "a.bin").read_bytes() == DATA


def test_a_server_without_ranges_begins_again(server: Server, root: Path, tmp_path: Path) -> None:
    server.ranges, server.cut = False, [120_000]
    fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert (root / "a.bin").read_bytes() == DATA


def test_a_busy_server_is_asked_again(server: Server, root: Path, tmp_path: Path) -> None:
    server.status = [503, 429]
    fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert (root / "a.bin").read_bytes() == DATA


def test_a_stopped_download_without_a_checksum_begins_again(server: Server, root: Path, tmp_path: Path) -> None:
    root.mkdir(parents=True)
    (root / ".a.bin.part").write_bytes(b"of an older version")
    result = fetch(read_scene_file(scene(tmp_path, {"address": f"{server.address}/a.bin"})))
    assert (root / "a.bin").read_bytes() == DATA
    assert server.asked == [("/a.bin", None)]
    assert result.checksums == {"a.bin": sha(DATA)}


def archive(kind: str) -> bytes:
    held = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(held, "w") as file:
            file.writestr("inner/a.bin", DATA)
            file.writestr("b.txt", "b")
    else:
        with tarfile.open(fileobj=held, mode="w:gz") as tar:
            for name, data in (("inner/a.bin", DATA), ("b.txt", b"b")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return held.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked_and_removed(kind: str, server: Server, root: Path, tmp_path: Path) -> None:
    data = archive(kind)
    server.files[f"all.{kind}"] = data
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "mine.txt").write_text("kept")
    entry = {"address": f"{server.address}/all.{kind}?download=1", "sha256": sha(data), "unpack": True}
    file = read_scene_file(scene(tmp_path, entry))
    assert fetch(file).missing == ["a.bin"]  # the scene file means another folder
    assert (root / "inner" / "a.bin").read_bytes() == DATA
    assert names(root) == {"a.bin", "b.txt", "mine.txt", NOTE}
    assert fetch(file).there == [f"all.{kind}"]
    (root / "b.txt").unlink()
    assert fetch(file).downloaded == [f"all.{kind}"]
    assert len(server.asked) == 2


# It refuses ---------------------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: Server, root: Path, tmp_path: Path) -> None:
    server.files["a.bin"] = DATA[:-1] + b"?"
    with pytest.raises(SceneError, match="has another checksum") as caught:
        fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert sha(DATA) in str(caught.value)
    assert names(root) == set()


def test_an_archive_goes_over_no_file_of_a_person(server: Server, root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("a.txt", "same")
        file.writestr("scene.yaml", "name: theirs")
    server.files["all.zip"] = (tmp_path / "all.zip").read_bytes()
    root.mkdir(parents=True)
    (root / "a.txt").write_text("same")
    (root / "scene.yaml").write_text("name: mine")
    one = {"address": f"{server.address}/all.zip", "unpack": True}
    with pytest.raises(OutputError, match=r"scene\.yaml is there already"):
        fetch(read_scene_file(scene(tmp_path, one)))
    assert (root / "scene.yaml").read_text() == "name: mine"
    (root / "scene.yaml").unlink()
    fetch(read_scene_file(scene(tmp_path, one)))
    assert (root / "scene.yaml").read_text() == "name: theirs"
    assert names(root) == {"a.txt", "scene.yaml", NOTE}


def test_more_bytes_than_the_server_has_are_thrown_away(server: Server, root: Path, tmp_path: Path) -> None:
    root.mkdir(parents=True)
    (root / ".a.bin.part").write_bytes(DATA + b"more")
    fetch(read_scene_file(scene(tmp_path, wanted(server, size=None))))
    assert (root / "a.bin").read_bytes() == DATA


def test_a_full_disk_is_reported_and_the_next_call_goes_on(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_scene_file(scene(tmp_path, wanted(server)))

    class Full:
        def __init__(self, out: Any) -> None:
            self.out, self.written = out, 0

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.out.close()

        def write(self, chunk: bytes) -> None:
            if self.written >= 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.written += self.out.write(chunk)

    with monkeypatch.context() as patched:
        patched.setattr(module, "open", lambda *args, **more: Full(open(*args, **more)), raising=False)  # noqa: PTH123, SIM115
        with pytest.raises(OutputError, match="No space left"):
            fetch(file)
    assert names(root) == {".a.bin.part"}
    fetch(file)
    assert (root / "a.bin").read_bytes() == DATA
    assert server.asked[-1] == ("/a.bin", "bytes=100000-")


def test_a_disk_too_small_is_reported_before_anything_is_asked(server: Server, root: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="GB free"):
        fetch(read_scene_file(scene(tmp_path, wanted(server, size=10**18))))
    assert server.asked == []


def test_a_disk_that_fills_while_unpacking_leaves_nothing_half_unpacked(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = archive("zip")
    server.files["all.zip"] = data
    file = read_scene_file(
        scene(tmp_path, {"address": f"{server.address}/all.zip", "sha256": sha(data), "unpack": True})
    )

    def full(self: zipfile.ZipFile, path: Path) -> None:
        path.mkdir()
        (path / "b.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extractall", full)
        with pytest.raises(OutputError, match="No space left"):
            fetch(file)
    assert names(root) == {"all.zip"}
    fetch(file)
    assert (root / "b.txt").exists()
    assert len(server.asked) == 1, "the archive was whole and is not fetched again"


def test_a_file_that_is_no_archive_is_reported(server: Server, root: Path, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="cannot be unpacked"):
        fetch(read_scene_file(scene(tmp_path, wanted(server, unpack=True))))


def test_a_server_that_is_gone_is_reported(server: Server, root: Path, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(MissingFileError, match="cannot be downloaded") as caught:
        fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert f"save it as {root / 'a.bin'}" in str(caught.value)
    assert names(root) == set()


def test_a_file_that_the_server_lacks_is_asked_for_once(server: Server, root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="Not Found"):
        fetch(read_scene_file(scene(tmp_path, wanted(server, address=f"{server.address}/b.bin"))))
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_made_is_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("a file")
    monkeypatch.setenv("LANDFUSE_DATA", str(tmp_path / "data"))
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(read_scene_file(scene(tmp_path / "place", wanted(server))))


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_shows_licence_and_citation_before_it_fetches(
    server: Server, root: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    path = scene(tmp_path, wanted(server))
    code, out, _ = landfuse("fetch", str(path.parent))
    assert code == 0
    order = [out.index(word) for word in ("Far away [1]", "CC-BY-4.0", "Somebody 2024", "fetched:  a.bin", "complete.")]
    assert order == sorted(order)
    code, out, _ = landfuse("fetch", str(path))
    assert code == 0
    assert "there:    a.bin" in out
    server.close()
    (root / "a.bin").unlink()
    code, out, err = landfuse("fetch", str(path))
    assert code == 2
    assert "CC-BY-4.0" in out
    assert "cannot be downloaded" in err


def test_what_a_person_has_to_get_is_reported_until_it_is_there(
    root: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    path = scene(tmp_path, manual="a.bin from the [owner]")
    code, out, err = landfuse("fetch", str(path))
    assert code == 3
    assert f"folder:   {root}" in out
    assert "a.bin from the [owner]" in err
    assert "not there yet: a.bin" in err
    root.mkdir(parents=True)
    (root / "a.bin").write_bytes(b"1")
    code, out, err = landfuse("fetch", str(path))
    assert code == 0
    assert "complete" in out
    assert "owner" not in err


def test_places_are_listed_and_found(landfuse: Callable[..., Any]) -> None:
    code, out, _ = landfuse("fetch")
    assert code == 0
    assert "houston2013" in out
    assert place_folder("trento") == places()["trento"]
    with pytest.raises(SettingsError, match=r"did you mean `trento`\?"):
        place_folder("trentino")
    code, _, err = landfuse("fetch", "trentino")
    assert code == 2
    assert "did you mean `trento`" in err


def test_a_place_is_checked_by_name(root: Path, landfuse: Callable[..., Any]) -> None:
    code, _, err = landfuse("check", "trento")
    assert code == 2
    assert f"{root.parent / 'trento' / 'HSI.mat'}" in err
    assert "do this:  get the data by `landfuse fetch trento`; a path to a file of your own starts from `root`" in err


def test_a_scene_without_its_data_names_the_command_that_gets_them(
    server: Server, root: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    path = scene(tmp_path / "far", wanted(server))
    assert f"landfuse fetch {path.parent}`" in landfuse("check", path).err
    text = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(text | {"modalities": {"a": {"path": "{tile}.tif"}}}))
    assert f"landfuse fetch {path.parent}`" in landfuse("check", path).err
    del text["fetch"]
    path.write_text(yaml.safe_dump(text))
    assert "landfuse fetch" not in landfuse("check", path).err


def test_data_lie_in_the_users_cache_unless_reported_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LANDFUSE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder().is_relative_to(tmp_path)
    assert "landfuse" in str(data_folder())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFUSE_DATA", "here")
    assert data_folder() == tmp_path / "here"
    assert read_scene_file(place_folder("trento")).root == str(tmp_path / "here" / "trento")


def test_what_was_fetched_is_noted(server: Server, root: Path, tmp_path: Path) -> None:
    fetch(read_scene_file(scene(tmp_path, wanted(server))))
    assert json.loads((root / NOTE).read_text()) == {
        f"{server.address}/a.bin": {"sha256": sha(DATA), "files": ["a.bin"]}
    }


def test_an_address_must_be_of_the_web(tmp_path: Path) -> None:
    with pytest.raises(LandfuseError, match="address"):
        read_scene_file(scene(tmp_path, {"address": "file:///etc/passwd"}))


def test_files_of_tiles_are_there_if_one_of_them_is(root: Path, tmp_path: Path) -> None:
    path = scene(tmp_path)
    text = yaml.safe_load(path.read_text())
    text["modalities"] = {"a": {"path": "a/{tile}_a.tif"}, "b": {"path": "b/{tile}.tif"}}
    path.write_text(yaml.safe_dump(text))
    (root / "a").mkdir(parents=True)
    (root / "a" / "1_a.tif").write_bytes(b"")
    assert fetch(read_scene_file(path)).missing == ["b/{tile}.tif"]


# Without a checksum -------------------------------------------------------------------------------------------------

PAGE = b"\n<!DOCTYPE html><html><body>Log in, please</body></html>"


@pytest.mark.parametrize(
    ("name", "data", "more", "message"),
    [
        ("a.zip", PAGE, {}, "it is a web page"),
        ("a.bin", PAGE, {}, "it is a web page"),
        ("a.tif", b"error: no such record", {}, r"begins with b'error: n', as no \.tif file does"),
        ("a.tgz", archive("zip"), {"unpack": True}, r"as no \.tgz file does"),
        ("a.bin", DATA, {"size": len(DATA) + 1}, "it has 300,000 bytes, not 300,001"),
    ],
    ids=["page for zip", "page", "words", "zip for tgz", "size"],  # bytes of a zip hold the time, and so would names
)
def test_another_file_is_refused_and_asked_for_again(
    name: str, data: bytes, more: dict[str, Any], message: str, server: Server, root: Path, tmp_path: Path
) -> None:
    server.files[name] = data
    file = read_scene_file(scene(tmp_path, {"address": f"{server.address}/{name}", **more}))
    for _ in range(2):
        with pytest.raises(MissingFileError, match=message):
            fetch(file)
        assert names(root) == set()
    assert len(server.asked) == 2


def test_what_an_earlier_call_left_is_replaced_if_it_is_another_file(
    server: Server, root: Path, tmp_path: Path
) -> None:
    server.files["a.zip"] = archive("zip")
    root.mkdir(parents=True)
    (root / "a.zip").write_bytes(PAGE)
    (root / NOTE).write_text('{"torn')
    entries = {"address": f"{server.address}/a.zip", "unpack": True}, {**wanted(server), "sha256": None}
    fetch(read_scene_file(scene(tmp_path, *entries)))
    assert names(root) == {"a.bin", "b.txt", NOTE}
    assert len(json.loads((root / NOTE).read_text())) == 2


def test_a_web_page_is_known_by_what_the_server_says(server: Server, root: Path, tmp_path: Path) -> None:
    server.kind, server.files["a.zip"] = "text/html; charset=utf-8", archive("zip")
    entry: dict[str, Any] = {"address": f"{server.address}/a.bin"}
    with pytest.raises(MissingFileError, match="it is a web page"):
        fetch(read_scene_file(scene(tmp_path, entry)))
    assert names(root) == set()
    fetch(read_scene_file(scene(tmp_path, wanted(server), {"address": f"{server.address}/a.zip"})))
    assert names(root) == {"a.bin", "a.zip", NOTE}, "a checksum and a file's own beginning say more"


def damaged(kind: str) -> bytes:
    whole = archive("zip" if kind == "encrypted" else "tar.gz")
    tar = bytearray(gzip.decompress(archive("tar.gz")))
    if kind == "encrypted":
        whole = bytearray(whole)
        for start in (whole.find(b"PK\3\4") + 6, whole.find(b"PK\1\2") + 8):
            whole[start] |= 1
    elif kind == "cut gzip":
        whole = whole[:-1000]
    elif kind == "a bad bit":
        whole = whole[:-200] + bytes([whole[-200] ^ 8]) + whole[-199:]
    elif kind == "a bad checksum":
        whole = whole[:-6] + bytes([whole[-6] ^ 8]) + whole[-5:]
    elif kind == "a bad header":
        tar[tar.rfind(b"ustar")] ^= 8
        whole = gzip.compress(tar, 1)
    elif kind == "cut between files":
        whole = gzip.compress(tar[: tar.rfind(b"b.txt")], 1)
    return bytes(whole)


@pytest.mark.parametrize(
    "kind", ["encrypted", "cut gzip", "a bad bit", "a bad checksum", "a bad header", "cut between files"]
)
def test_damaged_archives_leave_nothing_and_are_fetched_again(
    kind: str, server: Server, root: Path, tmp_path: Path
) -> None:
    name = "a.zip" if kind == "encrypted" else "a.tgz"
    server.files[name] = damaged(kind)
    file = read_scene_file(scene(tmp_path, {"address": f"{server.address}/{name}", "unpack": True}))
    with pytest.raises(SceneError, match="cannot be unpacked") as caught:
        fetch(file)
    assert "repeat the command" in caught.value.do
    assert names(root) == set()
    server.files[name] = archive("zip" if kind == "encrypted" else "tar.gz")
    assert fetch(file).downloaded == [name]
    assert (root / "inner" / "a.bin").read_bytes() == DATA
