"""Bundles and ONNX files to the Hugging Face Hub and back, with a card that is written from the run.

A repository holds the files of a bundle, an ONNX file, or both; `SHA256SUMS`, by which `pull` checks them; and the
card, `README.md`. Nothing else is ever downloaded, and none of these files holds code.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from landfuse.bundles.model_files import ModelFile, bundle_folder, onnx_file, read_json, read_tensors, saved_spec
from landfuse.bundles.onnx_model import OnnxModel
from landfuse.download import PASSING, Progress, download, wait
from landfuse.errors import BundleError, LandfuseError, MissingFileError, OutputError, SettingsError, nearest
from landfuse.files import bytes_of, sha256_of
from landfuse.interop.model_card import model_card
from landfuse.reporting.provenance import without_places
from landfuse.training.run import read_run

log = logging.getLogger("landfuse")

_MODEL = ("model.json", "model.safetensors", "model.onnx")
_SUMS, _CARD = "SHA256SUMS", "README.md"

_SAME = ("modalities", "legend", "tiling", "temperature", "roles", "notes")
"""What two forms of one model have in common, beside its settings but those that `export` changes."""

_EXPORTED = ("weights", "merged")

_LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl
    gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
    openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
"""Names that the Hub knows (https://huggingface.co/docs/hub/repositories-licenses); it adds some now and then."""

_NETWORK = cast(type[Exception], HfHubHTTPError.__mro__[1])
"""What errors of the network derive from; the library has changed its client more than once."""

_T = TypeVar("_T")


class Upload(NamedTuple):
    """What is uploaded, or would be."""

    files: dict[str, int]  # name -> bytes
    card: str
    address: str  # of the commit; empty where nothing was uploaded


def push(
    model: str | Path,
    repository: str,
    *,
    onnx: str | Path | None = None,
    run: str | Path | None = None,
    licence: str = "",
    card: str | Path | None = None,
    public: bool = False,
    yes: bool = False,
    progress: bool = True,
) -> Upload:
    """Uploads a bundle or an ONNX file to the Hugging Face Hub, with a card; without `yes`, returns what it would be.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN; HF_ENDPOINT names another Hub.

    Args:
        model: a run folder, a bundle, or an ONNX file.
        repository: `owner/name`; it is made where there is none.
        onnx: an ONNX file of the same model, beside the bundle.
        run: the run folder for scores and data, where `model` is none.
        licence: of the model, by the Hub's name for it, e.g. `CC-BY-4.0`; a public model needs one.
        card: a card of your own (Markdown); by default it is written from the run.
        public: let everybody read the repository; by default only its owner can.
        yes: upload.
        progress: show progress bars.

    Raises:
        BundleError: if the model is damaged, or the files are of several models.
        SettingsError: if a public model has no licence, or a file holds a path or a token of this machine.
        OutputError: if the Hub cannot be reached, or refuses.

    Examples:
        >>> lf.push("runs/first", "me/first", licence="CC-BY-4.0").files["model.json"] > 1000
        True
    """
    _check_name(repository)
    files, known = _files_of(Path(model), onnx)
    owner = run if run is not None else model if (Path(model) / "recipe.json").exists() else None
    read = None if owner is None else read_run(owner)
    if read is not None:
        _check_same(known, read_json(read.folder / "bundle"), f"{model} and the run {read.folder}")
    said = {"--licence": licence}
    if "model.onnx" in files:
        said["model.onnx"] = OnnxModel(files["model.onnx"]).file.licence
    stated = {one.lower(): one for one in said.values() if one}
    if len(stated) > 1 or (public and not stated):
        raise SettingsError(
            " and ".join(f"{where} says `{one}`" for where, one in said.items()) if stated else "no licence is stated",
            "one licence; a public model that has none may be used by nobody",
            "state it by --licence, e.g. CC-BY-4.0; that of the training data may bind you",
        )
    licences = _LICENCES.split()
    for one in stated.keys() - licences if card is None else ():
        hint = nearest(one, licences, "`other` stands for one that it does not list")
        log.warning("`%s` is no name of a licence that the Hub is known to take; it may refuse the card: %s", one, hint)
    text = _card_of(Path(card)) if card is not None else ""
    text = text or model_card(repository, known, list(files), "".join(stated.values()), read)
    sums = "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items())
    contents: dict[str, Path | bytes] = {_CARD: text.encode(), **files, _SUMS: sums.encode()}
    _check_private(known, contents)
    sizes = {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in contents.items()}
    if not progress:
        disable_progress_bars()
    return Upload(sizes, text, _send(repository, contents, public) if yes else "")


def pull(
    repository: str,
    folder: str | Path | None = None,
    *,
    progress: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> Path:
    """Downloads a model that `push` uploaded, and checks it; the folder is there when all of it is.

    What has arrived of an interrupted download stays beside the folder, and the same call continues from it.

    Args:
        repository: `owner/name`, or `owner/name@revision`: a branch, tag or commit.
        folder: where it is to be; by default `name`.
        progress: returns, for the name of a file, what is called with its bytes done and in all.

    Returns:
        The folder, which `load` and `predict` take.

    Raises:
        OutputError: if the folder is there already, or cannot be written.
        MissingFileError: if the Hub cannot be reached, refuses, or has no such model.
        BundleError: if a file is not what was uploaded, or of a newer version.

    Examples:
        >>> lf.pull("nobody")
        Traceback (most recent call last):
        landfuse.errors.SettingsError: ...
    """
    name, _, revision = repository.partition("@")
    _check_name(name if revision else repository)
    folder = Path(folder or name.rpartition("/")[2])
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} is there already", "a new folder", "choose another by -o, or remove it")
    api, token = _api(), get_token()
    info = _asked(
        f"{repository} cannot be read",
        MissingFileError,
        lambda: api.model_info(name, revision=revision or None, files_metadata=True),
    )
    there = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    part = folder.with_name(f".{folder.name}.{str(info.sha)[:12]}.part")
    secret = {"Authorization": f"Bearer {token}"} if token else {}

    def fetch(file: str, sha256: str | None = None) -> Path:
        address = f"{api.endpoint}/{info.id}/resolve/{info.sha}/{file}"
        size, show = there.get(file, 0), progress(file)
        download(address, part / file, sha256=sha256, size=size, room=size, secret=secret, progress=show)
        return part / file

    sums = fetch(_SUMS).read_text(encoding="utf-8") if _SUMS in there else ""
    wanted = {file: sha256 for sha256, file in re.findall(r"^([0-9a-f]{64})  (.+)$", sums, re.M) if file in _MODEL}
    if not wanted:
        raise MissingFileError(
            f"{repository} holds no model of landfuse: {_SUMS} lists none",
            "a repository that `landfuse push` wrote",
            "check the name and revision",
        )
    for file, sha256 in wanted.items():
        try:
            fetch(file, sha256)
        except LandfuseError:
            raise
        except ValueError as error:
            raise BundleError(
                f"{file} of {repository} is not what was uploaded: {error}",
                f"the files that its {_SUMS} lists",
                "ask its owner to push it again, or name an earlier revision: owner/name@revision",
            ) from None
    if _CARD in there:
        fetch(_CARD)
    _files_of(part, part / "model.onnx" if wanted.keys() > {"model.onnx"} else None)
    part.rename(folder)
    return folder


def _card_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "a card in Markdown", "save it in UTF-8") from None


def _files_of(model: Path, onnx: str | Path | None) -> tuple[dict[str, Path], ModelFile]:
    """The files of a model by their names in a repository, and what it says of itself; they are whole."""
    single = onnx_file(model)
    if single is not None and onnx is not None:
        raise SettingsError(f"{model} and {onnx} are two ONNX files", "one", "name one, or a bundle and one")
    if single is not None:
        return {"model.onnx": single}, OnnxModel(single).file
    folder = bundle_folder(model)
    known = read_json(folder)
    read_tensors(folder, known.weights, lambda path: None)
    files = {name: folder / name for name in _MODEL[:2]}
    if onnx is not None:
        _check_same(known, OnnxModel(Path(onnx)).file, f"{model} and {onnx}")
        files["model.onnx"] = Path(onnx)
    return files, known


def _check_same(one: ModelFile, other: ModelFile, what: str) -> None:
    def sign(known: ModelFile) -> dict[str, Any]:
        settings = saved_spec(known).settings if known.package is None else known.model.settings
        kept = {name: value for name, value in settings.items() if name not in _EXPORTED}
        return {name: getattr(known, name) for name in _SAME} | {"model": known.model.name} | kept

    first, second = sign(one), sign(other)
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    if differing:
        raise BundleError(
            f"{what} are of two models: they differ in {', '.join(differing)}",
            "one model",
            "export it again, or name its run",
        )


def _check_private(known: ModelFile, contents: Mapping[str, Path | bytes]) -> None:
    """Refuses what would make known this machine's folders or the token."""
    if any(without_places(part) != part for part in (known.model.settings, known.frozen)):
        raise SettingsError(
            "the model's settings name a file of this machine",
            "a model that opens anywhere, and names no folder of yours",
            "landfuse export MODEL -o BUNDLE; then push that, with --run RUN for its scores",
        )
    secrets = {"the token": get_token() or "", "your home folder": f"{Path.home()}{os.sep}"}
    for name, content in contents.items():
        for what, secret in secrets.items():
            if len(secret) > 3 and _holds(content, secret.encode()):
                raise SettingsError(
                    f"{name} holds {what}", "files without it", "remove it from the names and words of the scene"
                )


def _holds(content: Path | bytes, secret: bytes) -> bool:
    if isinstance(content, bytes):
        return secret in content
    with bytes_of(content) as data:
        return data.find(secret) >= 0


def _api() -> HfApi:
    return HfApi(library_name="landfuse", library_version=version("landfuse"))


def _send(repository: str, contents: Mapping[str, Path | bytes], public: bool) -> str:
    """Uploads all files in one commit, and returns its address."""
    api, what = _api(), f"nothing was uploaded to {repository}"

    def there() -> ModelInfo | None:
        try:
            return api.model_info(repository)
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public)
            return None

    known = _asked(what, OutputError, there)
    if known is not None and not known.private and not public:
        raise SettingsError(
            f"{repository} is there already, and everybody can read it",
            "a private repository, or --public",
            "--public, if it may be public; or another name",
        )
    if known is not None and known.private and public:
        log.warning("%s is there already, and stays private; its page on the Hub has a setting for that", repository)

    def commit() -> str:
        added = [CommitOperationAdd(name, one) for name, one in contents.items()]
        return str(api.create_commit(repository, added, commit_message="A model of landfuse").commit_url)

    return _asked(what, OutputError, commit)


def _check_name(name: str) -> None:
    whole = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
    if not whole or re.search(r"--|\.\.|[.-](/|$)|\.git$", name):  # by the Hub's rules
        raise SettingsError(f"{name!r} is no repository", "owner/name", "name one as on the Hub")


def _asked(what: str, kind: type[MissingFileError | OutputError], ask: Callable[[], _T]) -> _T:
    """The Hub's answer, in several attempts where another may be a better one; `what` begins the message if not."""
    code, why = 0, ""
    for attempt in count():
        try:
            return ask()
        except ValueError as error:  # of the name or the card; the answer 400 is one too
            why = " ".join(str(error).split())
            do = "check the name and revision" if kind is MissingFileError else "correct the name, --licence or --card"
            raise kind(f"{what}: {why}", "what the Hub takes", do) from None
        except (_NETWORK, OSError, RuntimeError) as error:  # the last of its threads, around another
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            code = getattr(getattr(cause, "response", None), "status_code", 0)
            why = str(getattr(cause, "server_message", None) or cause).strip().split("\n")[0]
            if code not in (0, *PASSING) or not wait(attempt, what, error):
                break
    if code in (401, 403, 404):
        can = "read" if kind is MissingFileError else "write to"
        do = "check the name and revision; log in by `hf auth login`, or set HF_TOKEN"
        raise kind(f"{what}: {why}", f"what is there, and a token that can {can} it", do)
    raise kind(f"{what}: {why}", f"a Hub that answers at {_api().endpoint}", "check the network, and try again later")
