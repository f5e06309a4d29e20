"""Strict YAML to typed settings: unknown keys are errors with a suggestion, all faults are listed in one go."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

import pydantic
import yaml

from landfuse.errors import FaultsError, MissingFileError, SettingsError, nearest

log = logging.getLogger("landfuse")


class Settings(pydantic.BaseModel):
    """The base of all settings: typed, frozen, and closed to unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    about: ClassVar[str] = ""
    """What it configures, in a line."""
    cost: ClassVar[str] = ""
    """How long that takes, in words."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Sets of defaults by name, for a field `preset`."""

    earlier: ClassVar[Mapping[str, Any]] = {}
    """What it means where something saved lacks a setting, since it is older than that, if not the default."""

    retired: ClassVar[Mapping[str, tuple[object, str]]] = {}
    """Settings that no longer exist: name -> (the old default, at which files may still set it; what to do)."""
    retired_training: ClassVar[frozenset[str]] = frozenset()
    """Those of them that only concerned training: what is saved may set them to anything."""

    @classmethod
    def written_out(cls, values: Mapping[str, Any], *, saved: bool = False) -> dict[str, Any]:
        """The values, with those that files must not leave to a later version: of `earlier`, and of a preset.

        Args:
            values: what is written out wins.
            saved: they are those of a trained model.
        """
        own = {}
        for name, before in cls.earlier.items():
            value = before if saved else cls.model_fields[name].default
            own[name] = list(value) if isinstance(value, tuple) else value  # as in files
        chosen = values.get("preset")
        if not isinstance(chosen, str) or chosen not in cls.presets:
            return {**own, **values}
        return {**own, **cls.presets[chosen], **{name: value for name, value in values.items() if name != "preset"}}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_retired(cls, values: Any, info: pydantic.ValidationInfo) -> Any:
        if not isinstance(values, Mapping):
            return values
        saved = bool((info.context or {}).get("saved"))
        ignored = cls.retired_training if saved else ()
        faults = [
            f"`{name}` no longer exists; {do}"
            for name, (default, do) in cls.retired.items()
            if name in values and values[name] != default and name not in ignored
        ]
        if faults:
            raise ValueError("; and ".join(faults))
        return {name: value for name, value in cls.written_out(values, saved=saved).items() if name not in cls.retired}


S = TypeVar("S", bound=Settings)


def _unambiguous(values: dict[str, Any]) -> dict[str, Any]:
    odd = [f"`{key}: {value}`" for key, value in values.items() if _AMBIGUOUS.fullmatch(str(value))]
    if odd:
        raise ValueError(f"{', '.join(odd)} is text here; write true, false, or a number without leading zeros")
    return values


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
Side = Annotated[int, pydantic.Field(ge=1, le=8192)]
"""Of a window, px."""
Count = Annotated[int, pydantic.Field(ge=1, le=10**9)]
Chance = Annotated[float, pydantic.Field(ge=0, lt=1)]
Rate = Annotated[float, pydantic.Field(gt=0, le=1e3)]
Weight = Annotated[float, pydantic.Field(ge=0, le=1e6)]

_AMBIGUOUS = re.compile(r"(?i)yes|no|on|off|[-+]?0[0-9_]+|[-+]?[0-9]+(_[0-9]+)+")
Options = Annotated[dict[str, Any], pydantic.AfterValidator(_unambiguous)]
"""Keywords for another library: here no type says whether `no` is a text or false."""


class SettingsFaultsError(FaultsError, SettingsError):
    """All that is wrong with the values of one file."""


_ALIASED = 100_000  # values that the aliases of a file may add; ten lines of them can stand for billions


class _Loader(yaml.SafeLoader):
    """The plain words of YAML 1.2: only `true`, `null`, 12 and 1.5e3 and their like are more than text.

    PyYAML follows YAML 1.1, where `no` is false, 010 is 8, 12:30 is 750 and 2024-02-30 a date that there is not. As
    text they are read by the type of their setting: `no` as false by a flag, 010 as 10 by a number, as it is by a name.
    """

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if str(tag).rpartition(":")[2] in ("None", "null", "bool", "str", "seq", "map")
    }

    def construct_document(self, node: yaml.Node) -> Any:
        """Refuses aliases that stand for more than memory holds, or for what they are in."""
        sizes: dict[int, float] = {}

        def size(one: yaml.Node) -> float:
            if id(one) not in sizes:
                sizes[id(one)] = math.inf  # as long as its parts are counted, of which it may be one
                pairs = one.value if isinstance(one, yaml.MappingNode) else [one.value]
                parts = [part for pair in pairs for part in pair] if isinstance(one, yaml.CollectionNode) else ()
                sizes[id(one)] = 1 + sum(map(size, parts))
            return sizes[id(one)]

        if size(node) > len(sizes) + _ALIASED:
            raise yaml.constructor.ConstructorError(None, None, "its aliases (*) stand for too much", node.start_mark)
        return super().construct_document(node)

    def construct_scalar(self, node: Any) -> str:
        """Refuses characters that no file name and no other file can hold; escapes can write them."""
        text = str(super().construct_scalar(node))
        if self.NON_PRINTABLE.search(text):
            raise yaml.constructor.ConstructorError(None, None, "found a control character", node.start_mark)
        return text

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """A whole number, or any other."""
        text = self.construct_scalar(node).lower()
        with suppress(ValueError):
            whole = node.tag.endswith("int") and len(text) < 19  # digits of 64 bits
            number = int(text, 0) if whole else float(re.sub(r"\.(?=inf|nan)", "", text))
            if math.isinf(number) == ("inf" in text):
                return number
        raise yaml.constructor.ConstructorError(None, None, f"no number, or too large: {text[:20]}", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses keys that come twice, of which PyYAML takes the last; a key merged by `<<` may be overridden."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"found the key `{key.value}` twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _kind, _first, _words in (
    ("null", ["~", "n", "N", ""], "~|null|Null|NULL|"),
    ("bool", "tTfF", "true|True|TRUE|false|False|FALSE"),
    ("int", "-+0123456789", r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    ("merge", "<", "<<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_words})\\Z"), [*_first])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def _load(text: str | bytes) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (KeyError, ValueError) as error:  # of a tag: `!!bool maybe`
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from None


KINDS = {
    "a scene file": ({"name", "modalities"}, "`landfuse check` takes it, and recipes name it as `scene`"),
    "a recipe": ({"scene", "model"}, "`landfuse train` takes it; a look at its scene is `landfuse check {scene}`"),
    "an ablation": ({"base", "variants"}, "`landfuse ablation` takes it; its recipe is {base}"),
}
"""What files of settings there are: the keys that distinguish one from the others, and the command that reads it."""


_DATA = (
    ".tif", ".tiff", ".img", ".jp2", ".vrt", ".nc", ".mat", ".hdr",
    ".dat", ".bsq", ".gpkg", ".shp", ".geojson", ".fgb", ".kml", ".csv", ".zip",
)  # fmt: skip
"""Endings of what may be given where a file of settings is expected."""


def kind_of(values: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` the values of a file are; None if they are none or could be several."""
    fitting = [kind for kind, (keys, _) in KINDS.items() if keys <= values.keys()]
    return fitting[0] if len(fitting) == 1 else None


def read_kind(kind: str, path: str | Path) -> dict[str, Any]:
    """`read_yaml` of a file that is to be one of `KINDS`; a SettingsError if it is of another kind, too."""
    if Path(path).suffix.lower() in _DATA and Path(path).is_file():
        do = f"write a scene file and a recipe for it: landfuse init {shlex.quote(str(path))}"
        raise SettingsError(f"{path} is a file of data, not {kind}", f"{kind} (YAML), which names files of data", do)
    if Path(path).suffix.lower() in (".onnx", ".safetensors"):
        do = "name the model first, then the scene: landfuse predict MODEL SCENE -o map.tif"
        raise SettingsError(f"{path} is a file of a model, not {kind}", f"{kind} (YAML)", do)
    values = read_yaml(path)
    found = kind_of(values)
    if found is not None and found != kind:
        near = {key: Path(path).parent / str(values[key]) for key in ("scene", "base") if key in values}
        raise SettingsError(f"{path} is {found}", kind, KINDS[found][1].format(**near))
    return values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads one YAML file whose top level is a mapping.

    Raises:
        MissingFileError: if there is no such file.
        SettingsError: if it is not YAML, or its top level is not a mapping.
    """
    path = Path(path)
    try:
        values = _load(path.read_bytes())
    except FileNotFoundError:
        init = f"write one for the files that are there: landfuse init {shlex.quote(str(path.parent))}"
        do = init if path.name == "scene.yaml" and path.parent.is_dir() else "check the path"
        near = nearest(path.name, sorted(path.parent.glob("*.y*ml")), do, key=lambda one: one.name)
        raise MissingFileError(f"there is no file {path}", "a YAML file", near) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error}", "a YAML file", "check the path") from None
    except yaml.reader.ReaderError as error:
        raise SettingsError(f"{path} cannot be read: {error}", "a text file", "save it in UTF-8") from None
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{path} is not valid YAML: {error}", "YAML: each key once, no tabs", "correct the line named above"
        ) from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise SettingsError(f"{path} {found}", "a mapping of keys to values", "check the file")
    return values


def parse(kind: type[S], values: Mapping[str, Any], where: str, *, saved: bool = False) -> S:
    """Checks values against a settings class.

    Args:
        values: as read from YAML.
        where: names the source in messages, e.g. the file's path.
        saved: they are those of a trained model, see `Settings.retired_training`.

    Raises:
        SettingsError: naming every fault: unknown keys with the nearest known one, missing keys, wrong values.
    """
    try:
        return kind.model_validate(dict(values), context={"saved": saved})
    except pydantic.ValidationError as error:
        messages = dict.fromkeys(_message(kind, values, fault) for fault in error.errors())
    faults = [SettingsError(f"{where}: {message}") for message in messages]
    raise faults[0] if len(faults) == 1 else SettingsFaultsError(faults)


def parse_rest(
    kind: type[S], values: Mapping[str, Any], where: str, needed: Collection[str]
) -> tuple[S | None, list[SettingsError]]:
    """As `parse`, but returns the settings without the values that are wrong, and the faults.

    Args:
        needed: top-level keys; if they, or one of their own keys, have to be left out, no settings are left.
    """
    faults, rest = list[SettingsError](), _copy(dict(values))
    unknown = True  # all that was left out so far: then what is wrong next is no consequence
    while True:
        try:
            return kind.model_validate(rest), faults
        except pydantic.ValidationError as error:
            found = error.errors()
        if unknown:
            messages = dict.fromkeys(_message(kind, rest, fault) for fault in found)
            faults += [SettingsError(f"{where}: {message}") for message in messages]
        unknown = all(fault["type"] == "extra_forbidden" for fault in found)
        for way in sorted((_way(rest, fault["loc"]) for fault in found), key=len, reverse=True):
            while way and isinstance(way[-1], int):  # an item of a list: the whole list is left out
                way.pop()
            if not way or (len(way) <= 2 and way[0] in needed):
                return None, faults
            place = rest
            for part in way[:-1]:
                place = place[part]
            place.pop(way[-1], None)


_TYPES = {
    f"{name}_{how}": f"expected {words}"
    for name, words in (
        ("int", "a whole number"),
        ("float", "a number"),
        ("bool", "true or false"),
        ("string", "text"),
        ("tuple", "a list"),
        ("list", "a list"),
        ("dict", "keys with values"),
        ("model", "keys with values"),
    )
    for how in ("type", "parsing", "from_float")
}
"""Kinds of fault of pydantic, in the words of this project."""


def _message(kind: type[Settings], values: Mapping[str, Any], fault: Any) -> str:
    """One entry of pydantic's list of errors in words."""
    key, kinds = ".".join(map(str, _way(values, fault["loc"]))), _kinds_at(kind, fault["loc"])
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        known = sorted({field for one in _kinds_at(kind, fault["loc"][:-1]) for field in one.model_fields})
        hint = nearest(name, known, f"known here: {', '.join(known)}", cutoff=0.5)
        return f"unknown key `{key}`; {hint}"
    if fault["type"] == "missing":
        return f"the key `{'.'.join([*([key] if key else []), str(fault['loc'][-1])])}` is missing"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = fault["ctx"]["discriminator"].strip("'")
        tags = [value for one in kinds for value in _choices(one, tag)]
        if fault["type"] == "union_tag_not_found":
            return f"the key `{key}.{tag}` is missing; one of: {', '.join(tags)}"
        return _not_one_of(f"{key}.{tag}", fault["ctx"]["tag"], tags)
    if fault["type"] == "literal_error":
        return _not_one_of(key, fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    message, value = str(fault["msg"]).removeprefix("Value error, "), fault.get("input")
    message = _TYPES.get(fault["type"], message)
    if fault["type"] == "string_type" and isinstance(value, bool | int | float):
        message += "; write it in quotes"
    shown = repr(value)
    return f"`{key}` is {shown if len(shown) < 80 else shown[:77] + '...'}: {message}" if key else message


def _not_one_of(key: str, value: object, words: Sequence[str]) -> str:
    return f"`{key}` is {value!r}, not one of: {', '.join(words)}{nearest(str(value), words, '', before='; ')}"


def _way(values: Any, location: Iterable[str | int]) -> list[str | int]:
    """Where a fault is, as the file has it: pydantic also names members of unions, which are no keys of the file."""
    way = []
    for part in location:
        listed = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if listed or (isinstance(values, Mapping) and part in values):
            way.append(part)
            values = values[part]
    return way


def _kinds_at(kind: type[Settings], location: Iterable[str | int]) -> list[type[Settings]]:
    """The settings classes that a place may hold."""
    kinds = [kind]
    for part in location:
        fields = [one.model_fields[str(part)] for one in kinds if part in one.model_fields]
        below = [inner for field in fields for inner in _kinds_in(field.annotation)]
        named = [one for one in kinds if part in _names(one)]
        kinds = below or named or kinds
    return kinds


def _names(kind: type[Settings]) -> list[str]:
    """How pydantic may name a member of a union."""
    return [kind.__name__, *(choice for field in kind.model_fields for choice in _choices(kind, field))]


def _kinds_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a type names, within unions, lists and mappings too."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds_in(part)]


def _choices(kind: type[Settings], field: str) -> list[str]:
    """The words that a field of the type `Literal` may hold; none for other fields."""
    annotation = kind.model_fields[field].annotation if field in kind.model_fields else None
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with `key.sub=value` assignments applied; values are read as YAML.

    Raises:
        SettingsError: if an assignment has no `=`, or goes through a value that has no keys.
    """
    result = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"`{assignment}` is no assignment", "key=value, e.g. training.epochs=20", "add the `=`")
        *path, last = key.strip().split(".")
        place = result
        for part in path:
            if place.get(part) is None:  # also a section that is written, but empty
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise SettingsError(f"`{key}`: `{part}` holds a value, not keys", "a key that has keys below it", "")
        try:
            place[last] = _load(text)
        except yaml.YAMLError:
            raise SettingsError(f"`{assignment}`: the value is not valid YAML", "key=value", "quote it") from None
    return result


def _copy(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _copy(value) for key, value in values.items()}
    return [_copy(value) for value in values] if isinstance(values, list) else values


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\{tile(:02)?\}")


_NETWORK = re.compile(
    r"(?i)(?<![a-z0-9+])(?!(?:file|zip|tar|gzip|vrt)://)[a-z0-9+]*://|/vsi(?!(?:zip|tar|gzip|7z|rar)/)"
)


def expand(text: str, known: Mapping[str, str] | None = None, tile: str | None = None) -> str:
    """Replaces `${NAME}` and `${NAME:-default}` by environment variables, and `{tile}` by a name if there is one.

    An address may be the value of one variable at its beginning; no other variable becomes a part of one, since what
    it holds would be sent to a server.

    Args:
        text: with the variables.
        known: values that win over the environment's.
        tile: its name; without one `{tile}` stays.

    Raises:
        SettingsError: if a variable without a default is not set, or would become a part of an address.
    """

    def value(match: re.Match[str]) -> str:
        name, default, padded = match.groups()
        if name is None:
            return match[0] if tile is None else re.sub(r"\d+", lambda n: n[0].zfill(2), tile) if padded else tile
        found = (known or {}).get(name) or os.environ.get(name) or default
        if found is None:
            raise SettingsError(
                f"the environment variable {name} is not set", f"a value, since `{text}` uses it", f"set {name}"
            )
        return found

    expanded, variables = _VARIABLE.sub(value, text), [one for one in _VARIABLE.finditer(text) if one[1]]
    whole = len(variables) == 1 and text.startswith("${") and _NETWORK.search(value(variables[0]))
    if variables and not whole and _NETWORK.search(expanded):
        raise SettingsError(
            f"the address `{text}` has an environment variable in it",
            "none, or one at the beginning that holds the address itself: all the rest is sent to a server",
            "write its value instead",
        )
    return expanded


_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}


def byte_count(text: str | int) -> int:
    """Reads a size such as `2GiB`, `500 MB` or a plain number of bytes; raises a ValueError if it is none."""
    match = re.fullmatch(r"\s*([0-9_]+(?:\.[0-9]*)?(?:e\+?[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    with suppress(ValueError, KeyError):
        count = float(match.group(1)) * _UNITS[match.group(2).upper()] if match else math.inf
        if count < 2**63:
            return int(count)
    raise ValueError(f"{text!r} is no size; write one like 2GiB or 500MB")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that a computation takes: as many as OMP_NUM_THREADS says, or as there are cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(wanted) if wanted.isdigit() and int(wanted) else cores()


def most_processes() -> int:
    """How many processes make sense on this machine: 4 per core, since they may wait for the disk."""
    return 4 * cores()


def bounded_processes(wanted: int, name: str) -> int:
    """How many processes are started where an option asks for so many; logs if that is fewer."""
    most = most_processes()
    if wanted > most:
        log.warning("%s is %d; %d processes are started, 4 per core of this machine", name, wanted, most)
    return min(wanted, most)


class Described(NamedTuple):
    """A setting in words."""

    key: str
    values: str
    default: str
    meaning: str


def describe(kind: type[Settings], prefix: str = "") -> list[Described]:
    """All settings of a class in the order of their fields, those of sections within it after their section's."""
    rows = []
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        limits = [
            words.format(getattr(bound, limit))
            for bound in field.metadata
            for limit, words in _LIMITS
            if hasattr(bound, limit)
        ]
        values = " ".join([_values(field.annotation), *limits])
        rows.append(Described(prefix + name, values, default, field.description or ""))
        many = get_origin(field.annotation) in (dict, tuple)
        for inner in _kinds_in(field.annotation):
            tag = next((f"({choice})" for f in inner.model_fields for choice in _choices(inner, f) if f == "kind"), "")
            rows += describe(inner, f"{prefix}{name}{'[]' if many else ''}{tag}.")
    return rows


_LIMITS = (("ge", "from {}"), ("gt", "above {}"), ("le", "to {}"), ("lt", "below {}"), ("multiple_of", "by {}"))
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", type(None): "null"}


def _values(annotation: Any) -> str:
    """What a type accepts, in words."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not Ellipsis]
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        return f"list of {_values(parts[0])}" if len(set(parts)) == 1 else "list"
    if origin in (dict, Mapping):
        return "mapping"
    if origin is Annotated:
        return _values(parts[0])
    if parts:
        return " or ".join(dict.fromkeys(map(_values, parts)))
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "section"
    return _WORDS.get(annotation, "any")


def _default(value: Any) -> str:
    if isinstance(value, Settings):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
