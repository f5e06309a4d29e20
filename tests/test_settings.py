"""Strict YAML: every wrong key is reported with the nearest right one, all in one go."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import pytest
import yaml

from landfuse.errors import FaultsError, MissingFileError, SettingsError
from landfuse.settings import (
    Options,
    Settings,
    bounded_processes,
    byte_count,
    expand,
    most_processes,
    override,
    parse,
    read_kind,
    read_yaml,
)


class Leaf(Settings):
    width: int = 1
    colour: str = "red"


class Oak(Settings):
    kind: Literal["oak"]
    acorns: int = 0


class Pine(Settings):
    kind: Literal["pine"]
    needles: int = pydantic.Field(default=0, ge=0)
    leaf: Leaf | None = None


class Tree(Settings):
    name: str
    height: float = 1.0
    leaf: Leaf = Leaf()
    leaves: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = {}
    nested: dict[str, list[Leaf]] = {}
    trunk: Annotated[Oak | Pine, pydantic.Field(discriminator="kind")] | None = None
    bark: Oak | Leaf | None = None
    size: int | str = 1
    age: Literal["old", "young"] = "old"

    @pydantic.field_validator("name")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 5:
            raise ValueError("names are short")
        return value


def faults(values: dict[str, object]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(Tree, values, "tree.yaml")
    return str(caught.value).splitlines()


def test_right_values() -> None:
    tree = parse(Tree, {"name": "elm", "named": {"a": {"width": 2}}, "trunk": {"kind": "pine", "needles": 3}}, "x")
    assert tree.named["a"].width == 2
    assert isinstance(tree.trunk, Pine)
    with pytest.raises(pydantic.ValidationError):
        tree.name = "ash"  # frozen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "x"}, "unknown key `nmae`; did you mean `name`?"),
        (
            {"zzz": 1},
            "unknown key `zzz`; known here: age, bark, height, leaf, leaves, name, named, nested, size, trunk",
        ),
        ({"leaf": {"widht": 1}}, "unknown key `leaf.widht`; did you mean `width`?"),
        ({"leaves": [{}, {"color": 1}]}, "unknown key `leaves.1.color`; did you mean `colour`?"),
        ({"named": {"a": {"widht": 1}}}, "unknown key `named.a.widht`; did you mean `width`?"),
        # A name that is also a key of the class below it leads nowhere else.
        ({"named": {"width": {"widht": 1}}}, "unknown key `named.width.widht`; did you mean `width`?"),
        ({"nested": {"a": [{"widht": 1}]}}, "unknown key `nested.a.0.widht`; did you mean `width`?"),
        ({"trunk": {"kind": "oak", "acorn": 1}}, "unknown key `trunk.acorn`; did you mean `acorns`?"),
        # Only the keys of the kind that was chosen are offered.
        ({"trunk": {"kind": "oak", "needle": 1}}, "unknown key `trunk.needle`; known here: acorns, kind"),
        ({"trunk": {"kind": "pine", "leaf": {"widht": 1}}}, "unknown key `trunk.leaf.widht`; did you mean `width`?"),
        ({"trunk": {"kind": "oka"}}, "`trunk.kind` is 'oka', not one of: oak, pine; did you mean `oak`?"),
        ({"trunk": {"kind": "fir"}}, "`trunk.kind` is 'fir', not one of: oak, pine"),
        ({"trunk": {"needles": 1}}, "the key `trunk.kind` is missing; one of: oak, pine"),
        ({"trunk": {"kind": "pine", "needles": -1}}, "`trunk.needles` is -1: Input should be greater than"),
        ({"height": "tall"}, "`height` is 'tall': expected a number"),
        ({"age": "yuong"}, "`age` is 'yuong', not one of: old, young; did you mean `young`?"),
        ({"leaf": None}, "`leaf` is None: expected keys with values"),
        ({"named": {1: {}}}, "`named.1` is 1: expected text"),
    ],
)
def test_one_fault(values: dict[str, object], message: str) -> None:
    (line,) = faults({"name": "elm", **values})
    assert line.startswith(f"tree.yaml: {message}")


def test_values_of_a_plain_union_keep_their_key() -> None:
    lines = faults({"name": "elm", "size": [1]})
    assert all(line.startswith("tree.yaml: `size` is [1]: ") for line in lines)
    lines = faults({"name": "elm", "bark": {"kind": "oak", "widht": 1}})
    assert "tree.yaml: unknown key `bark.widht`; did you mean `width`?" in lines


def test_all_faults_in_one_go() -> None:
    values = {"height": "tall", "leafs": 1, "trunk": {"kind": "elm"}, "leaves": [{"width": "x"}, {"colr": "y"}]}
    with pytest.raises(SettingsError) as caught:
        parse(Tree, values, "tree.yaml")
    assert isinstance(caught.value, FaultsError)
    assert len(caught.value.faults) == 6
    messages = str(caught.value)
    for part in ("`name` is missing", "`height` is", "`leafs`", "`trunk.kind`", "`leaves.0.width`", "`leaves.1.colr`"):
        assert part in messages


def test_own_checks_speak_without_a_prefix() -> None:
    assert faults({"name": "sycamore"}) == ["tree.yaml: `name` is 'sycamore': names are short"]


BOMB = f"a0: &a0 [{'x, ' * 9}]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
"""2 GB in 12 lines, more with each."""


def write(folder: Path, text: str) -> Path:
    path = folder / "tree.yaml"
    path.write_text(text)
    return path


def test_reading(tmp_path: Path) -> None:
    text = "name: elm\nnamed: &n {a: {width: 2}}\nbase: &b {x: 1, y: 2}\nover: {<<: *b, y: 3}\n"
    assert read_yaml(write(tmp_path, text)) == {
        "name": "elm",
        "named": {"a": {"width": 2}},
        "base": {"x": 1, "y": 2},
        "over": {"x": 1, "y": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"not valid YAML: .*(?s:.)*the key `a` twice"),
        ("a:\n  - {b: 1, c: 2, b: 3}\n", r"not valid YAML: .*(?s:.)*the key `b` twice"),
        ("a:\n\tb: 1\n", r"not valid YAML: (?s:.)*line 2"),
        ("a: [1,\n", "not valid YAML"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- 1\n", "holds a list"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: !!int abc\n", "no number, or too large: abc(?s:.)*line 1"),
        ("a: !!float\n", "no number, or too large"),
        ("a: !!bool maybe\n", "does not fit its tag: 'maybe'"),
        ("a: !!timestamp 2024-01-01\n", "not valid YAML(?s:.)*timestamp"),
        ("a: " + "9" * 5000, "no number, or too large: 9999"),
        ("a: 0x" + "f" * 5000, "no number, or too large: 0xff"),
        ("a: 1e400\n", "no number, or too large: 1e400"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("- " * 5000, "nested too deeply"),
        (BOMB, "aliases .* stand for too much"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("x, " * 9, "{x: 1}"), "stand for too much"),
        ("a: &a [*a]\n", "aliases .* stand for too much"),
        ("a: &a {b: {<<: *a}}\n", "aliases .* stand for too much"),
        ('a: "x\\0y"\n', "control character(?s:.)*line 1"),
        ('a: ["\\ud83c"]\n', "control character(?s:.)*line 1"),
        ('"a\\0": 1\n', "control character(?s:.)*line 1"),
        ("a: x\0y\n", "cannot be read(?s:.)*special characters"),
    ],
)
def test_files_that_are_no_settings(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read_yaml(write(tmp_path, text))
    assert "tree.yaml" in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, "a: 1\n")
    with pytest.raises(MissingFileError, match=r"did you mean `.*tree\.yaml`\?"):
        read_yaml(tmp_path / "tre.yaml")
    with pytest.raises(MissingFileError, match="check the path"):
        read_yaml(tmp_path / "no" / "tree.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: Grünland".encode("latin-1"))
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


class Field(Settings):
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    flag: bool = True
    rate: float = 0
    passed_on: Options = {}


@pytest.mark.parametrize(
    "text", ["010", "007", "2023_01", "12:30:00", "2024-02-30", "0000-00-00", "no", "on", "Y", "="]
)
def test_names_are_read_as_they_are_written(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"names: [{text}]\n")
    assert parse(Field, read_yaml(path), "x").names == (text,)
    assert parse(Field, override({}, [f"names=[{text}]"]), "x").names == (text,)


@pytest.mark.parametrize(
    ("text", "number"),
    [("02", 2), ("010", 10), ("-08", -8), ("1_000", 1000), ("+5", 5), ("0x1F", 31), ("0o17", 15), ("1e3", 1000)],
)
def test_numbers_are_decimal_whatever_their_zeros(text: str, number: int, tmp_path: Path) -> None:
    assert parse(Field, read_yaml(write(tmp_path, f"numbers: [{text}]\n")), "x").numbers == (number,)
    assert parse(Field, override({}, [f"rate={text}"]), "x").rate == (number if "x" not in text else 31)


@pytest.mark.parametrize(
    ("text", "flag"), [("no", False), ("Off", False), ("false", False), ("yes", True), ("ON", True), ("True", True)]
)
def test_flags_are_read_in_all_their_words(text: str, flag: bool) -> None:
    assert parse(Field, override({}, [f"flag={text}"]), "x").flag is flag


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names=[12]", "expected text; write it in quotes"),
        ("names=[1.10]", "expected text; write it in quotes"),
        ("names=[true]", "expected text; write it in quotes"),
        ("numbers=[12:30]", "expected a whole number"),
        ("numbers=[2024-01-01]", "expected a whole number"),
        ("rate=.nan", "finite number"),
        ("rate=.inf", "finite number"),
        ("rate=1_0e400", "finite number"),
        ("passed_on={benchmark: no}", "`benchmark: no` is text here; write true, false"),
        ("passed_on={depth: 012, size: 1_000}", "`depth: 012`, `size: 1_000` is text here"),
    ],
)
def test_what_could_mean_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(Field, override({}, [text]), "x")


def test_a_file_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_bytes("name: Grünland\n".encode("utf-16"))
    assert read_yaml(tmp_path / "tree.yaml") == {"name": "Grünland"}


def test_override() -> None:
    values = {"a": {"b": 1, "c": [1]}, "d": 2, "empty": None}
    changed = override(values, ["a.b=5", "d=[1, 2]", "e.f.g=x", "empty.h=true", "a.c=null", "t=a=b"])
    assert changed == {
        "a": {"b": 5, "c": None},
        "d": [1, 2],
        "e": {"f": {"g": "x"}},
        "empty": {"h": True},
        "t": "a=b",
    }
    assert values == {"a": {"b": 1, "c": [1]}, "d": 2, "empty": None}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a", "`a` is no assignment"),
        ("=1", "`=1` is no assignment"),
        ("d.x=1", "`d` holds a value, not keys"),
        ("a=[1", "not valid YAML"),
        ("a={b: 1, b: 2}", "not valid YAML"),
    ],
)
def test_overrides_that_are_wrong(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        override({"d": 2}, [assignment])


def test_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LF_PLACE", "/data")
    monkeypatch.setenv("LF_EMPTY", "")
    monkeypatch.delenv("LF_NONE", raising=False)
    assert expand("${LF_PLACE}/x") == "/data/x"
    assert expand("${LF_PLACE:-other}/${LF_NONE:-../y}") == "/data/../y"
    assert expand("${LF_EMPTY:-z}${LF_NONE:-}") == "z"
    assert expand("no $LF_PLACE {tile}") == "no $LF_PLACE {tile}"
    for text in ("${LF_NONE}/x", "${LF_EMPTY}"):
        with pytest.raises(SettingsError, match=r"the environment variable LF_(NONE|EMPTY) is not set"):
            expand(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), (12, 12), ("2GiB", 2 * 1024**3), ("500 MB", 500_000_000), ("1.5kb", 1500), (" 3 tib ", 3 * 1024**4),
        (2.5e9, 2_500_000_000), (1e16, 10**16), ("10B", 10), ("2_000MB", 2 * 10**9),
    ],
)  # fmt: skip
def test_byte_count(text: str | int, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.2.3", "3 XB", ".", "1 GB 2", "lots", "1e400", "9e9 TiB", "_"])
def test_byte_counts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write one like"):
        byte_count(text)


SCENE = {"name": "hill", "modalities": {"sar": {"path": "sar.tif"}}}
RECIPE = {"scene": "hill.yaml", "model": "forest", "modalities": ["sar"]}
ABLATION = {"base": "recipe.yaml", "variants": {"full": {}}}


@pytest.mark.parametrize(
    ("kind", "given", "do"),
    [
        ("a scene file", RECIPE, "landfuse check {folder}/hill.yaml"),
        ("a recipe", SCENE, "landfuse check"),
        ("a recipe", ABLATION, "landfuse ablation"),
        ("an ablation", RECIPE, "landfuse train"),
    ],
)
def test_a_file_of_another_kind_is_reported_by_its_kind(
    tmp_path: Path, kind: str, given: dict[str, object], do: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(SettingsError) as caught:
        read_kind(kind, path)
    assert caught.value.expected == kind
    assert do.format(folder=tmp_path) in caught.value.do


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("a scene file", SCENE),
        ("a recipe", RECIPE),
        ("an ablation", ABLATION),
        ("a recipe", {"scene": "hill.yaml"}),  # what is missing is reported by `parse`
        ("a recipe", SCENE | RECIPE),
    ],
)
def test_other_files_are_read_as_they_are(tmp_path: Path, kind: str, given: dict[str, object]) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(given))
    assert read_kind(kind, path) == given


def _below(kind: type[Settings]) -> Iterator[type[Settings]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _numbers(annotation: Any, metadata: Iterable[Any]) -> Iterator[set[str]]:
    """The ends at which each number of a type is bounded."""
    if get_origin(annotation) is Annotated:
        annotation, *further = get_args(annotation)
        metadata = [*metadata, *further]
    if annotation in (int, float):
        limits = [one for each in metadata for one in [each, *getattr(each, "metadata", ())]]
        yield {name[0] for name in ("ge", "gt", "le", "lt") for one in limits if hasattr(one, name)}
    for part in get_args(annotation):
        yield from _numbers(part, metadata)


def test_every_number_is_bounded_so_that_nothing_overflows() -> None:
    for module in ("training.recipe", "studies.ablation", "studies.reproduce"):
        importlib.import_module(f"landfuse.{module}")
    kinds = {kind for kind in _below(Settings) if kind.__module__.startswith("landfuse.")}
    assert len(kinds) > 30
    unbounded = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if any(ends != {"g", "l"} for ends in _numbers(field.annotation, field.metadata))
    ]
    assert sorted(unbounded) == ["ClassSettings.code", "ModalitySettings.nodata"]  # the legend's; any number of a file


def test_processes_are_bounded_by_the_machine(caplog: pytest.LogCaptureFixture) -> None:
    most = most_processes()
    assert bounded_processes(most, "--workers") == most
    assert not caplog.records
    assert bounded_processes(10**6, "--workers") == most
    assert f"--workers is 1000000; {most} processes are started" in caplog.text
