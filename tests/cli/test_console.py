"""How a command speaks and ends, whichever it is: encodings, ctrl-C, what the system refuses, options given twice."""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from landfuse import cli
from landfuse.cli import commands, console

Run = Callable[..., Any]


@pytest.mark.parametrize(("encoding", "name"), [("ascii", r"Gew\xe4sser"), ("cp1252", "Gewässer")])
def test_a_console_that_lacks_characters(
    encoding: str, name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_load((place / "scene.yaml").read_text()) | {"root": str(place)}
    text["legend"][0]["name"] = "Gewässer ■"
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(text))
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["landfuse", "check", str(tmp_path)])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    signal.signal(signal.SIGTERM, before)
    assert not ended.value.code
    out.flush()
    assert name + r" \u25a0" in out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_control_c_while_a_command_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 8 TiB"), "the memory does not suffice: Unable to allocate 8 TiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory does not suffice"),
        (OverflowError("int too large to convert to float"), "a number is too large: int too large"),
        (OSError(errno.EIO, "Input/output error", "s2.tif"), "the system refuses: s2.tif: Input/output error"),
        (OSError("no socket"), "the system refuses: no socket"),
        (
            UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
            r"the name 'a\\udcff' is not in UTF-8",
        ),
    ],
)
def test_what_the_system_refuses_is_one_message(
    error: Exception, message: str, landfuse: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("landfuse.scenes.check.check", failing)
    done = landfuse("check", place)
    assert done.code == 2
    assert done.err.replace("\\\\", "\\").startswith(f"error {message}".replace("\\\\", "\\"))
    assert "Traceback" not in done.err


@pytest.mark.parametrize("word", ["n" * 300, "caf\udce9/scene.yaml", "a\nb", "[x]*?{tile}${HOME}"])
def test_names_that_no_file_has(word: str, landfuse: Run) -> None:
    for words in (["check", word], ["train", word], ["predict", word, word, "-o", "m.tif"], ["evaluate", word, word]):
        done = landfuse(*words)
        assert done.code == 2, done
        assert done.err.count("error") + done.err.count("fault") == 1, done.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["predict", "run", "scene.yaml", "-o", "a.tif", "--output", "b.tif"], "--output"),
        (["check", "scene.yaml", "--views", "7", "--views", "9"], "--views"),
        (["train", "recipe.yaml", "training.epochs=3", "training.epochs=4"], "training.epochs"),
        (["ablation", "a.yaml", "run=a", "run=b"], "run"),
        (["reproduce", "houston2013", "model.trees=1", "model.trees=2"], "model.trees"),
        (["sample", "map.tif", "-o", "s.csv", "--expected", "3=.8", "--expected", "3=.9"], "3"),
        (["report", "run", "--bands", "a=1", "--bands", "a=2"], "a"),
    ],
)
def test_options_that_are_given_twice(words: list[str], option: str, landfuse: Run) -> None:
    done = landfuse(*words)
    assert done.code == 2
    assert done.err.startswith(f"error {option} is given 2 times")


@pytest.mark.parametrize(
    ("words", "do"),
    [
        (["train", "r.yaml", "--epochs", "3"], "training.epochs=3"),
        (["train", "r.yaml", "--epoch=3"], "training.epochs=3"),
        (["ablation", "a.yaml", "--run", "runs/a"], "run=runs/a"),
        (["reproduce", "houston2013", "--trees"], "model.trees=..."),
    ],
)
def test_a_setting_that_is_given_as_an_option(words: list[str], do: str, landfuse: Run) -> None:
    done = landfuse(*words)
    assert done.code == 2
    assert done.err.startswith("error there is no option --")
    assert done.err.endswith(f"do this:  {do}\n")


def test_other_unknown_options_and_words_after_two_dashes(landfuse: Run) -> None:
    for words in (["predict", "a", "b", "-o", "m.tif", "--epochs", "3"], ["train", "r.yaml", "--qqqqq"]):
        done = landfuse(*words)
        assert done.code == 2
        assert "No such option" in done.err
    assert "no file r.yaml" in landfuse("train", "r.yaml", "--", "training.epochs=3").err


def test_a_command_that_shows_nothing_says_that_it_starts(
    landfuse: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "FIRST_WORDS", 0.05)
    monkeypatch.setattr("landfuse.accuracy.from_sample.evaluate_sample", lambda *_, **__: time.sleep(0.3) or 1 / 0)
    done = landfuse("evaluate", place / "labels.tif", "sample.gpkg")
    assert done.err.startswith("landfuse evaluate: starting\n")
    assert done.code == 1
    assert "report it with the lines above at https://github.com/landfuse/landfuse/issues" in done.err


def test_the_address_for_faults_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Issues"] == commands.ISSUES


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_the_help_has_no_hard_breaks_and_no_types_of_flags(name: str, landfuse: Run) -> None:
    done = landfuse(name, "--help")
    assert done.code == 0
    assert "<bool>" not in done.out
    paragraphs = (commands.command(name).help or "").split("\n\n")
    assert not any("\n" in paragraph for paragraph in paragraphs)


def test_words_are_completed(landfuse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LANDFUSE_COMPLETE", "complete_bash")
    for words, found in (("landfuse tra", ["train"]), ("landfuse predict --po", ["--polygons"])):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert landfuse().out.split() == found


@pytest.mark.parametrize(
    ("words", "found", "do"),
    [
        (["check", "PLACE/a.tif"], "a.tif is a file of data, not a scene file", "landfuse init PLACE/a.tif"),
        (["evaluate", "m.tif", "PLACE/labels.tif"], "labels.tif is a file of data", "landfuse init PLACE/labels.tif"),
        (["predict", "run", "PLACE/a.tif", "-o", "m.tif"], "a.tif is a file of data", "landfuse init PLACE/a.tif"),
        (["train", "PLACE/a.tif"], "a.tif is a file of data, not a recipe", "landfuse init PLACE/a.tif"),
        (["predict", "m.tif", "run.onnx", "-o", "m.tif"], "run.onnx is a file of a model", "predict MODEL SCENE"),
        (["check", "EMPTY"], "there is no file EMPTY/scene.yaml", "landfuse init EMPTY"),
        (["predict", "run", "PLACE", "-o", "x.png"], "a map cannot be written as x.png", "name it x.tif; a picture"),
        (
            ["predict", "run", "PLACE", "-o", "PLACE/scene.yaml"],
            "scene.yaml is a file, and no map",
            "-o PLACE/scene.tif",
        ),
        (["predict", "run", "PLACE", "-o", "x.zarr"], "a map cannot be written as x.zarr", "name it x.tif"),
        (["predict", "run", "PLACE", "-o", "x.PDF"], "a map cannot be written as x.PDF", "name it x.tif; a picture"),
        (["predict", "run", "PLACE", "-o", "s3://b/x.gpkg"], "written as s3://b/x.gpkg", "name it s3://b/x.tif\n"),
        (["report", "run", "-o", "x.pdf"], "cannot be written as x.pdf", "-o x.html; a browser prints it"),
        (["evaluate", "m.tif", "PLACE", "-o", "scores.json"], "scores.json is the name of a file", "-o scores\n"),
        (["compare", "run", "-o", "all.csv"], "all.csv is the name of a file", "-o all\n"),
        (["export", "run", "-o", "model.zip"], "model.zip is the name of a file", "-o model\n"),
        (["init", "PLACE", "-o", "scene.yaml"], "scene.yaml is the name of a file", "-o scene\n"),
        (["map", "PLACE", "-o", "x.png"], "x.png is the name of a file", "-o x\n"),
    ],
)
def test_files_of_another_kind_are_refused_before_anything_is_loaded(
    words: list[str], found: str, do: str, landfuse: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "m.tif").touch()

    def real(text: str) -> str:
        return text.replace("PLACE", str(place)).replace("EMPTY", str(tmp_path))

    done = landfuse(*map(real, words))
    assert done.code == 2
    assert real(found) in done.err
    assert real(do) in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "m.tif"}


def test_the_next_step_is_that_of_the_last_part(landfuse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def two() -> None:
        console.hint("landfuse", "train", "a b.yaml")
        console.hint("landfuse", "report", Path("a b"))

    monkeypatch.setattr("landfuse.cli.data.fetch", two)
    assert landfuse("fetch").err == "next: landfuse report 'a b'\n"
    assert console.take_hint() is None


def test_every_option_has_a_group(invoke: Run) -> None:
    for name in ("predict", "train", "sample", "evaluate"):
        words = invoke(name, "--help").output
        assert "Files and messages" in words
        options = words.partition("╭─ Options")[2].partition("╯")[0]
        assert set(re.findall(r"--[a-z-]+", options)) == {"--help"}, name


@pytest.mark.parametrize("silent", [None, "as_json", "quiet"])
def test_mapping_says_once_how_large_it_is(
    silent: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr("landfuse.cli.console.time.monotonic", lambda: next(seconds))
    caplog.set_level("INFO", "landfuse")
    events = console.Events(silent == "as_json", silent == "quiet")
    with events.mapping(1000, lambda: "refnet: 5 parameters") as update:
        for done in (100, 110, 120, 130, 1000):  # 100 were done before; the clock goes on by itself
            update("tile", done)
    said = "".join(line.getMessage() for line in caplog.records)
    assert re.fullmatch("" if silent else r"refnet: 5 parameters; 1,000 px, about 0:\d\d:\d\d left", said)
