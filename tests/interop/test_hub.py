"""`push` and `pull` against a Hub on loopback: what is uploaded, what comes back, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub.utils import _http

import landfuse as lf
from landfuse import download
from landfuse.errors import BundleError, LandfuseError, MissingFileError, OutputError, SettingsError
from landfuse.interop.export import export

TOKEN = "hf_secretsecretsecret"
LICENCES = {"cc-by-4.0", "mit", "other"}


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def sha(self, number: int = -1) -> str:
        number %= len(self.commits)
        return hashlib.sha1(f"{number}{sorted(self.commits[number])}".encode()).hexdigest()


class FakeHub:
    """A Hugging Face Hub as far as `push` and `pull` use it: repositories, commits, large files apart.

    Keeps what is uploaded. `fail`: part of a path -> statuses that its next requests get; `cut`: paths whose next
    answer breaks off in the middle. `asked`: method, path, and whether the token came along."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.fail: dict[str, list[int]] = {}
        self.cut: list[str] = []
        self.asked: list[tuple[str, str, bool]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.split("?")[0]
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                hub.asked.append((self.command, path, "Authorization" in self.headers))
                failing = next((statuses for part, statuses in hub.fail.items() if part in path and statuses), None)
                status, said, headers = (
                    (failing.pop(0), {"error": "no"}, {}) if failing else hub.of(self.command, path, body, known)
                )
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0]) if status == 200 else 0
                self.send_response(206 if start else status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                cut = path in hub.cut
                if cut:
                    hub.cut.remove(path)
                    self.close_connection = True
                if self.command != "HEAD":
                    self.wfile.write(data[start : len(data) // 2 if cut else None])

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self.http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def of(self, method: str, path: str, body: bytes, known: bool) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of an answer."""
        if path.startswith("/storage/"):  # as at another host: by whoever has the address
            if method == "PUT":
                self.stored[path] = body
            return 200, self.stored.get(path, b""), {}
        if path == "/api/validate-yaml":
            said = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            wrong = said.get("license") not in (None, *LICENCES)
            return (
                (400, {"errors": [{"message": '"license" must be one of ...'}], "warnings": []}, {})
                if wrong
                else (200, {"errors": [], "warnings": []}, {})
            )
        if path == "/api/repos/create":
            asked = json.loads(body)
            if not known:
                return 401, {"error": "Invalid username or password."}, {}
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.repositories.setdefault(name, Repository(private))
            return 200, {"url": f"{self.address}/{name}", "name": name}, {}
        words = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(words[:2]).removesuffix(".git"), words[2:]
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not known):
            missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return (404 if known else 401), {"error": "Repository not found"}, missing
        if not path.startswith("/api") and rest[:1] == ["resolve"]:
            return self.file(repository, rest[1], "/".join(rest[2:]))
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            large = [".safetensors", ".onnx"]
            modes = [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "oid": None,
                    "uploadMode": "lfs" if any(f["path"].endswith(one) for one in large) else "regular",
                }
                for f in files
            ]
            return 200, {"files": modes}, {}
        if rest[:2] == ["info", "lfs"]:
            objects = json.loads(body)["objects"]
            to = [{**one, "actions": {"upload": {"href": f"{self.address}/storage/{one['oid']}"}}} for one in objects]
            return 200, {"transfer": "basic", "objects": to}, {"Content-Type": "application/vnd.git-lfs+json"}
        if rest[:1] == ["commit"]:
            return self.commit(name, repository, body)
        revision = rest[1] if rest[:1] == ["revision"] else "main"
        files = self.files(repository, revision)
        if files is None:
            return 404, {}, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
        listed = [{"rfilename": one, "size": len(data)} for one, data in files.items()]
        sha = revision if revision != "main" else repository.sha()
        return 200, {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": listed}, {}

    def files(self, repository: Repository, revision: str) -> dict[str, bytes] | None:
        at = {repository.sha(number): one for number, one in enumerate(repository.commits)}
        return {**at, "main": repository.commits[-1]}.get(revision)

    def file(self, repository: Repository, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        data = (self.files(repository, revision) or {}).get(path)
        if data is None:
            return 404, {}, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        if not path.endswith((".safetensors", ".onnx")):
            return 200, data, {"Content-Type": "text/plain"}
        place = f"/storage/{hashlib.sha256(data).hexdigest()}"
        self.stored.setdefault(place, data)
        # `localhost` is another host than `127.0.0.1`, as the storage of large files is.
        return 302, b"", {"Location": f"http://localhost:{self.port}{place}"}

    def commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = dict(repository.commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[f"/storage/{value['oid']}"]
        repository.commits.append(files)
        address = f"{self.address}/{name}/commit/{repository.sha()}"
        return 200, {"commitUrl": address, "commitOid": repository.sha()}, {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub whose token the user has."""
    made = FakeHub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.address)  # as HF_ENDPOINT says when it starts
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # it is a protocol of its own
    monkeypatch.setattr(download, "PATIENCE", (0.0, 0.0))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def onnx_of(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the trained forest."""
    path = tmp_path_factory.mktemp("onnx") / "forest.onnx"
    export(trained, onnx=path)
    return path


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_nothing_is_uploaded_before_yes_and_then_what_was_shown(
    hub: FakeHub, trained: Path, onnx_of: Path, landfuse: Callable[..., Any]
) -> None:
    words = ("push", trained, "me/first", "--onnx", onnx_of, "--licence", "CC-BY-4.0")
    shown = landfuse(*words)
    assert shown.code == 0, shown.err
    assert hub.asked == []
    assert "nothing was uploaded" in shown.out
    assert "--licence CC-BY-4.0 --yes" in shown.err
    done = landfuse(*words, "--yes")
    assert done.code == 0, done.err
    assert f"uploaded: {hub.address}/me/first/commit/" in done.out
    repository = hub.repositories["me/first"]
    assert repository.private
    files = repository.commits[-1]
    assert set(files) == {"README.md", "SHA256SUMS", "model.json", "model.safetensors", "model.onnx"}
    assert all(f"  {name}: " in shown.out for name in files)
    assert files["README.md"].decode() in shown.out
    assert files["model.onnx"] == onnx_of.read_bytes()
    assert files["model.safetensors"] == (trained / "bundle" / "model.safetensors").read_bytes()
    for name in ("model.json", "model.onnx"):
        assert f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" in files["SHA256SUMS"].decode()
    assert TOKEN not in shown.out + shown.err + done.out + done.err
    for name, content in files.items():
        assert TOKEN.encode() not in content, name
        assert str(trained.parents[1]).encode() not in content, f"{name} names a folder of this machine"


def test_what_was_pushed_is_pulled_and_maps_alike(
    hub: FakeHub, trained: Path, onnx_of: Path, place: Path, landfuse: Callable[..., Any]
) -> None:
    lf.push(trained, "me/first", onnx=onnx_of, yes=True)
    first = hub.repositories["me/first"].sha()
    lf.push(onnx_of, "me/first", yes=True)  # the bundle that was there is no part of what is pulled now
    done = landfuse("pull", "me/first")
    assert done.code == 0, done.err
    assert names("first") == {"README.md", "SHA256SUMS", "model.onnx"}
    assert lf.pull(f"me/first@{first}", "both") == Path("both")
    assert names("both") == names("first") | {"model.json", "model.safetensors"}
    assert names(".") == {"first", "both"}, "nothing half-downloaded is left"
    scene = lf.open_scene(place / "scene.yaml")
    maps = [lf.predict(model, scene, f"{n}.tif") for n, model in enumerate((trained, "both", "first"))]
    assert len({path.read_bytes() for path in maps[:2]}) == 1
    assert (lf.open_map(maps[0]).classes == lf.open_map(maps[2]).classes).all()
    storage = [asked for asked in hub.asked if asked[0] == "GET" and asked[1].startswith("/storage/")]
    assert len(storage) == 3
    assert not any(token for _, _, token in storage), "the token goes to the Hub alone"


def test_the_card_is_written_from_the_run(trained: Path, place: Path, onnx_of: Path, tmp_path: Path) -> None:
    card = lf.push(trained, "me/first", licence="CC-BY-4.0").card
    read = huggingface_hub.ModelCard(card)  # an outside judge of the front matter
    assert (read.data.license, read.data.library_name) == ("cc-by-4.0", "landfuse")
    scores = json.loads((trained / "scores.json").read_text())
    found = {one.metric_type: one.metric_value for one in read.data.eval_results}
    assert found["accuracy"] == pytest.approx(scores["test"]["OA"], abs=1e-4)
    assert found["mean_iou"] == pytest.approx(scores["test"]["mIoU"], abs=1e-4)
    ends = scores["intervals"]["scores"]["OA"]
    truth = lf.evaluate(lf.predict(trained, lf.open_scene(place / "scene.yaml"), tmp_path / "map.tif"),
                        place / "scene.yaml", split=trained / "split").intervals()  # fmt: skip
    assert (ends["low"], ends["high"]) == (truth.scores["OA"].low, truth.scores["OA"].high)
    assert f"{ends['low']:.3f} to " in card
    assert f"{scores['leak_fraction']:.1%} of the test pixels were labelled from a view" in card
    for c in lf.open_scene(place / "scene.yaml").legend:
        assert f"| {c.code} | {c.name} | `{c.colour}` |" in card
    assert "| b | 2 | not stated | 1 |" in card
    assert "landfuse pull me/first\n" in card
    assert re.search(r"trained on (1 tile|[2-9] tiles): ", card)
    assert re.search(r"Test pixels lie in (1 block|[02-9] blocks) of ground", card)
    assert "Of the model: CC-BY-4.0" in card
    alone = lf.push(onnx_of, "me/first").card
    assert "Not known: this was not written from a run" in alone
    assert "not stated. Ask its owner" in alone
    assert "model-index" not in alone
    of_run = lf.push(onnx_of, "me/first", run=trained).card
    assert "predict first/model.onnx" in of_run
    assert huggingface_hub.ModelCard(of_run).data.eval_results == read.data.eval_results


def test_the_card_of_a_run_of_an_earlier_landfuse_says_what_it_does_not_know() -> None:
    card = lf.push(Path(__file__).parents[1] / "data" / "old" / "runs" / "two_branch", "me/old").card
    assert "No intervals are known: the run is of an earlier landfuse" in card
    assert "| overall accuracy (OA) | 0.938 | no interval |" in card
    assert 'pip install "landfuse[hub,train]"' in card


def private(run: Path, tmp_path: Path, **values: Any) -> Path:
    """A copy of a run's bundle that says something else."""
    copy = tmp_path / "changed"
    shutil.copytree(run / "bundle", copy)
    words = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**words, **values}))
    return copy


def test_what_must_not_be_uploaded_is_refused(
    hub: FakeHub, trained: Path, onnx_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, *words: Any, **options: Any) -> LandfuseError:
        with pytest.raises(LandfuseError, match=match) as error:
            lf.push(*words, yes=True, **options)
        return error.value

    assert "--licence" in refused("no licence is stated", trained, "me/first", public=True).do
    licensed = tmp_path / "mit.onnx"
    export(trained, onnx=licensed, licence="MIT")
    refused("model.onnx says `MIT`", licensed, "me/first", licence="CC-BY-4.0")
    refused("is no repository", trained, "first")
    for name in ("me/first@main", "me/a--b", "me/first.git", "me/first-", "me./first"):
        refused("is no repository", trained, name)
    refused("two ONNX files", onnx_of, "me/first", onnx=licensed)
    frozen = {"name": "sam", "address": "/data/me/sam.pth", "sha256": "0"}
    local = private(trained, tmp_path, frozen=frozen)
    assert "landfuse export" in refused("a file of this machine", local, "me/first").do
    legend = [{"name": f"{n} of {Path.home()}/x", "code": n, "colour": "#000000"} for n in range(1, 5)]
    other = private(trained, tmp_path / "other", legend=legend)
    refused("are of two models: they differ in legend", other, "me/first", run=trained)
    refused("are of two models", other, "me/first", onnx=onnx_of)
    larger = private(trained, tmp_path / "larger", model={"name": "forest", "settings": {"trees": 6}})
    refused("are of two models: they differ in context, trees", larger, "me/first", run=trained)
    refused("README.md holds your home folder", other, "me/first")
    card = tmp_path / "card.md"
    card.write_bytes(b"\xe0\x00")
    assert "UTF-8" in refused("card.md cannot be read", trained, "me/first", card=card).do
    card.write_text(f"# first\n{TOKEN}")
    refused("holds the token", trained, "me/first", card=card)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("not the file that model.json was written with", other, "me/first")
    assert hub.asked == []


def test_a_public_repository_is_not_taken_for_a_private_one(
    hub: FakeHub, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories["me/first"] = Repository(private=False)
    with pytest.raises(SettingsError, match="everybody can read it"):
        lf.push(trained, "me/first", yes=True)
    assert len(hub.repositories["me/first"].commits) == 1
    lf.push(trained, "me/first", licence="mit", public=True, yes=True)
    assert lf.push(trained, "me/new", licence="mit", public=True, yes=True).address
    assert not hub.repositories["me/new"].private
    hub.repositories["me/new"].private = True
    lf.push(trained, "me/new", licence="mit", public=True, yes=True)
    assert "stays private" in caplog.text


@pytest.mark.parametrize(
    ("failing", "words", "do"),
    [
        ({"/api/repos/create": [401]}, "nothing was uploaded to me/first: no", "HF_TOKEN"),
        ({"/commit/": [403]}, "nothing was uploaded to me/first: no", "HF_TOKEN"),
        ({"/storage/": [500] * 99}, "nothing was uploaded", "try again later"),
        ({}, '"license" must be one of', "--licence"),
    ],
    ids=["no token", "no right", "storage broken", "no such licence"],
)
def test_a_hub_that_refuses_an_upload_is_one_message(
    hub: FakeHub, trained: Path, failing: dict[str, list[int]], words: str, do: str
) -> None:
    hub.fail = failing
    with pytest.raises(OutputError, match=words) as error:
        lf.push(trained, "me/first", licence="MIT" if failing else "my own", yes=True)
    assert do in error.value.do
    assert TOKEN not in str(error.value)
    assert all(len(one.commits) == 1 for one in hub.repositories.values())


@pytest.mark.parametrize(
    ("licence", "hint"), [("CC-BY-4.0", ""), ("cc-by-4", "did you mean `cc-by-4.0`"), ("my own", "`other` stands for")]
)
def test_a_licence_that_the_hub_may_refuse_is_named_before_it_is_asked(
    licence: str, hint: str, hub: FakeHub, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lf.push(trained, "me/first", licence=licence)
    assert hint in caplog.text
    assert bool(caplog.text) == bool(hint)
    assert hub.asked == []


def test_passing_faults_are_passed_over(hub: FakeHub, trained: Path) -> None:
    hub.fail = {"/api/models/me/first": [503], "/storage/": [500], "/commit/": [503]}
    lf.push(trained, "me/first", yes=True)
    hub.fail = {"/api/models/": [503], "SHA256SUMS": [502]}
    assert lf.pull("me/first").is_dir()


def test_a_hub_that_refuses_a_download_is_one_message(
    hub: FakeHub, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, name: str = "me/first") -> LandfuseError:
        with pytest.raises(MissingFileError, match=match) as error:
            lf.pull(name)
        assert names(".") <= {"first"}
        return error.value

    with pytest.raises(SettingsError, match="'me/first@' is no repository"):
        lf.pull("me/first@")
    refused("Repository not found")
    hub.repositories["me/first"] = Repository(private=True)
    refused("holds no model of landfuse")
    lf.push(trained, "me/first", yes=True)
    refused("Invalid rev id: v2", "me/first@v2")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "HF_TOKEN" in refused("Repository not found").do
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail = {"/api/models/": [403]}
    refused("me/first cannot be read: no")
    hub.fail = {"/api/models/": [500] * 99}
    refused("me/first cannot be read")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in refused("cannot be read").expected


@pytest.mark.parametrize("get", [lf.pull, lambda name: download.download(f"https://{name}", Path("a.bin"))])
def test_a_name_that_is_not_resolved_is_tried_once_more(
    get: Callable[[str], object], hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(download, "PATIENCE", (0.0, 0.0, 0.0))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    with pytest.raises(MissingFileError, match="Name or service not known"):
        get("me/first")
    assert len(asked) == 2
    assert [record.message.partition("Name")[2] for record in caplog.records] == [" or service not known; trying again"]


def test_a_torn_download_goes_on_where_it_ended(hub: FakeHub, trained: Path) -> None:
    lf.push(trained, "me/first", yes=True)
    weights = (trained / "bundle" / "model.safetensors").read_bytes()
    place = f"/storage/{hashlib.sha256(weights).hexdigest()}"
    hub.cut = [place] * 3
    with pytest.raises(MissingFileError, match="cannot be downloaded") as error:
        lf.pull("me/first")
    assert f"{len(weights) // 2:,} bytes are there" in error.value.do
    assert not Path("first").exists()
    hub.asked.clear()
    lf.pull("me/first")
    assert (Path("first") / "model.safetensors").read_bytes() == weights
    assert not any(path.endswith("model.json") for _, path, _ in hub.asked), "what had arrived is not fetched again"
    assert names(".") == {"first"}


def test_what_is_not_what_was_uploaded_is_refused(
    hub: FakeHub, trained: Path, onnx_of: Path, landfuse: Callable[..., Any]
) -> None:
    lf.push(trained, "me/first", onnx=onnx_of, yes=True)
    files = hub.repositories["me/first"].commits[-1]

    def changed(**others: bytes) -> None:
        new = {**files, **{name.replace("_", "."): data for name, data in others.items()}}
        hub.repositories["me/first"].commits.append(new)

    def refused(match: str) -> None:
        with pytest.raises(BundleError, match=match):
            lf.pull("me/first")
        assert not Path("first").exists()

    weights = files["model.safetensors"]
    changed(model_safetensors=weights[:-1] + bytes([weights[-1] ^ 1]))
    refused("model.safetensors of me/first is not what was uploaded: it has another checksum")
    words = json.loads(files["model.json"])
    for text, match in (
        ({**words, "format": 99}, "has format 99"),
        ({**words, "weights": "0" * 64}, "is not the file that model.json was written with"),
        ({**words, "temperature": words["temperature"] * 2}, "are of two models: they differ in temperature"),
    ):
        data = json.dumps(text).encode()
        sums = files["SHA256SUMS"].decode()
        sums = sums.replace(hashlib.sha256(files["model.json"]).hexdigest(), hashlib.sha256(data).hexdigest())
        changed(model_json=data, SHA256SUMS=sums.encode())
        refused(match)
    evil = files["SHA256SUMS"] + b"0" * 64 + b"  ../../evil.pkl\n" + b"0" * 64 + b"  model.pkl\n"
    hub.repositories["me/first"].commits.append(
        {**files, "SHA256SUMS": evil, "model.pkl": b"x", "../../evil.pkl": b"x"}
    )
    lf.pull("me/first", "clean")
    assert names("clean") == set(files)
    assert not any("pkl" in path for _, path, _ in hub.asked)
    hub.asked.clear()
    again = landfuse("pull", "me/first", "-o", "clean")
    assert again.code == 2
    assert "clean is there already" in again.err
    assert hub.asked == []
