"""Runs the `landfuse` command of another Python environment; imports nothing of QGIS."""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

OLDEST = "0.1.0"
"""The first version that has all that is called here."""

OF_QGIS = re.compile(
    r"PYTHON|__PYVENV|VIRTUAL_ENV|GDAL_|PROJ_|OGR_|GEOTIFF_CSV|QT_|QGIS|O4W_|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_|FORCE_COLOR"
)
"""How the variables begin that lead to QGIS's own libraries, which another Python must not load."""

SETTING = "LANDFUSE_COMMAND"
"""The name of the setting in Processing's options that names the command."""

PATIENCE = 30.0
"""Seconds that a cancelled command has to tidy up; then it is killed."""

_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
if os.name == "nt":
    _TEXT["creationflags"] = 0x08000000  # no window of a console


class CommandError(Exception):
    """Why there is no result, in the words that the user gets."""

    def __init__(self, found: str, expected: str = "", do: str = "") -> None:
        super().__init__(
            found + (f"\n  expected: {expected}" if expected else "") + (f"\n  do this:  {do}" if do else "")
        )


class Ended(NamedTuple):
    """What a command printed."""

    lines: list[str]
    events: list[dict[str, Any]]
    """Its lines of JSON."""

    warning: str
    """Why the result is not whole, if it is not."""


def environment() -> dict[str, str]:
    """The variables of the environment without those of QGIS."""
    kept = {name: value for name, value in os.environ.items() if not OF_QGIS.match(name)}
    root = os.environ.get("OSGEO4W_ROOT")  # of QGIS on Windows, with libraries of the same names as the other Python's
    if root:
        folders = kept.get("PATH", "").split(os.pathsep)
        kept["PATH"] = os.pathsep.join(one for one in folders if not one.lower().startswith(root.lower()))
    return {**kept, "COLUMNS": "500", "NO_COLOR": "1", "PYTHONUTF8": "1"}  # its lines are whole, and in UTF-8


def program(named: str) -> str:
    """The path of a `landfuse` command that is recent enough.

    Args:
        named: the command, or the folder of its environment; empty for the one on the path.

    Raises:
        CommandError: if there is none.
    """
    expected = "the command, or the folder of a Python environment that has it by `pip install landfuse`"
    do = "name it in Settings > Options > Processing > Providers > landfuse"
    if named:
        places = [Path(named), *(Path(named, folder, "landfuse") for folder in ("bin", "Scripts", ""))]
        found = next((one for one in (shutil.which(str(place)) for place in places) if one), None)
    else:
        found = shutil.which("landfuse", path=environment().get("PATH", ""))
    if found is None:
        raise CommandError(f"there is no landfuse command {f'at {named}' if named else 'on the path'}", expected, do)
    said = _ask([found, "--version"])
    version = re.fullmatch(r"(\d+(?:\.\d+)+)\S*", said.stdout.strip())
    if version is None:
        raise CommandError(
            f"{found} is no landfuse command: {(said.stdout or said.stderr).strip()[:200]}", expected, do
        )
    if _release(version[1]) < _release(OLDEST):
        raise CommandError(
            f"{found} is landfuse {version[1]}", f"landfuse {OLDEST} or newer", "update it: pip install -U landfuse"
        )
    return found


def _release(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split(".")))


def model_place(path: str) -> str:
    """A model as landfuse names it: of a bundle its folder, whose `model.json` a file dialog can choose."""
    return str(Path(path).parent) if Path(path).name == "model.json" else path


def describe(command: str, model: str) -> dict[str, Any]:
    """What a model file takes and returns, as `landfuse models MODEL --json` prints it; raises a CommandError."""
    said = _ask([command, "models", model, "--json"])
    if said.returncode:
        raise CommandError(_message(said.stderr.splitlines()))
    known: dict[str, Any] = json.loads(said.stdout)
    return known


def scene_text(name: str, layers: dict[str, tuple[str, str, str]], known: dict[str, Any]) -> str:
    """A scene file that is mapped with a model.

    Args:
        name: of the scene.
        layers: modality -> path, further keys as a user wrote them, and the CRS if the file has none.
        known: as `describe` returns it. What a file does not say of itself (units, zoom) is that of the model.

    Raises:
        CommandError: if the scene file would read a path otherwise.
    """
    lines = [f"name: {json.dumps(name, ensure_ascii=False)}", "modalities:"]
    for modality, (path, keys, crs) in layers.items():
        if re.search(r"[*?]|\$\{|\{(tile|date)", path):
            raise CommandError(f"the path of `{modality}` is a pattern: {path}", "a path without * ? { $", "rename it")
        info = known["modalities"].get(modality, {})
        entries: dict[str, Any] = {"path": path, "units": info.get("units"), "zoom": info.get("zoom"), "crs": crs}
        if info.get("decode"):
            kind, divide = info["decode"].split()
            entries["decode"] = {"kind": kind, "divide": float(divide)}
        said = [
            f"{key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in entries.items()
            if value and not re.search(rf"\b{key}\s*:", keys)
        ]
        lines.append(f"  {json.dumps(modality)}: {{{', '.join(filter(None, (*said, keys.strip())))}}}")
    return "\n".join(lines) + "\n"


def _ask(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300, **_TEXT
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CommandError(f"{words[0]} cannot be run: {error}") from None


def split_words(text: str, windows: bool = os.name == "nt") -> list[str]:
    """The words of options as a shell takes them; on Windows `\\` is a part of a path.

    Raises:
        CommandError: if quotation marks are not closed, or no result is asked for.
    """
    try:
        words = [word.strip('"') for word in shlex.split(text, posix=False)] if windows else shlex.split(text)
    except ValueError as error:
        raise CommandError(f"the further options {text} end within quotation marks: {error}") from None
    if "--dry-run" in words:
        raise CommandError("--dry-run makes no map", "options of a map that is made", "use it in a terminal")
    return words


def run(words: list[str], feedback: Any) -> Ended:
    """Runs a command, shows what it prints and how far it is, and ends it if the user cancels.

    Args:
        words: the command's path and its words.
        feedback: a QgsProcessingFeedback.

    Raises:
        CommandError: with the command's own message if it fails; or if it is cancelled.
    """
    feedback.pushCommandInfo(subprocess.list2cmdline(words))
    # It ends, tidily, when its input is closed: on every system, and also where QGIS crashes.
    variables = {**environment(), "LANDFUSE_ENDS_WITH_STDIN": "1"}
    try:
        process = subprocess.Popen(
            words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, **_TEXT,
        )  # fmt: skip
    except OSError as error:
        raise CommandError(f"{words[0]} cannot be run: {error}") from None
    said: queue.Queue[tuple[bool, str]] = queue.Queue()

    def read(stream: Any, is_error: bool) -> None:
        with stream:
            for line in stream:
                said.put((is_error, line.rstrip()))

    readers = [threading.Thread(target=read, args=(process.stdout, False), daemon=True)]
    readers.append(threading.Thread(target=read, args=(process.stderr, True), daemon=True))
    for one in readers:
        one.start()
    ended, faults, until = Ended([], [], ""), list[str](), 0.0
    try:
        while any(one.is_alive() for one in readers) or not said.empty():
            if feedback.isCanceled() and not until:
                process.stdin.close()  # type: ignore[union-attr]
                until = time.monotonic() + PATIENCE
            if until and (process.poll() is not None or time.monotonic() > until):
                break
            with suppress(queue.Empty):
                is_error, line = said.get(timeout=0.1)
                if is_error and (faults or re.match(r"error |Traceback|Usage:", line)):
                    faults.append(line)
                elif is_error:
                    _show(line, feedback)
                elif line.startswith('{"event"'):
                    ended.events.append(json.loads(line))
                    _progress(ended.events[-1], feedback)
                else:
                    ended.lines.append(line)
                    if not line.startswith(tuple("┏┃┡│├└")):  # QGIS's log has no table
                        feedback.pushConsoleInfo(line)
        code = 0 if until else process.wait()
    finally:
        _kill(process)
    if until:
        raise CommandError("cancelled; nothing half-written is left")
    if code == 3:  # a part is not mapped, and the rest is
        return ended._replace(warning=_message(faults))
    if code:
        raise CommandError(_message(faults) or f"{words[0]} ended with exit code {code}")
    return ended


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a command and the processes that it has started, if there are any left."""
    if os.name != "nt":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], check=False, capture_output=True, **_TEXT)
    process.stdin.close()  # type: ignore[union-attr]
    process.wait()


def _show(line: str, feedback: Any) -> None:
    """Shows a line that is no result: how far the command is, a warning, or a note."""
    far = re.fullmatch(r"(.+): (\d+)%.*", line)
    if far:
        feedback.setProgressText(far[1])
        feedback.setProgress(int(far[2]))
    elif line.startswith("WARNING"):
        feedback.pushWarning(line[len("WARNING") :].strip())
    elif not re.match(r"next: |interrupted; |landfuse \w+: starting", line):
        feedback.pushInfo(re.sub(r"^INFO\s+", "", line))


def _progress(event: dict[str, Any], feedback: Any) -> None:
    if event["event"] == "progress":
        feedback.setProgress(100 * event["pixels"] / event["of"])
    elif "found" in event:
        feedback.pushWarning(event["found"])


def _message(lines: list[str]) -> str:
    """The command's message, without the frame and the usage that come with a wrong option."""
    framed = [line.strip("│ ") for line in lines if line.startswith("│")]
    return re.sub(r"^error ", "", "\n".join(framed or lines).strip())
