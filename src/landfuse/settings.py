"""Strict YAML to typed settings: unknown keys are errors with a suggestion, all faults are told in one go."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from landfuse.errors import MissingFileError, SettingsError


class Settings(pydantic.BaseModel):
    """The base of all settings: typed, frozen, and closed to unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads one YAML file whose top level is a mapping.

    Raises:
        MissingFileError: if there is no such file.
        SettingsError: if it is not YAML, or its top level is not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise MissingFileError(
            f"there is no file {path}",
            "a YAML file",
            f"did you mean {path.parent / near[0]}?" if near else "check the path",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "a YAML file in UTF-8", "check the path") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}", "YAML", "mend the line named above") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {type(values).__name__}", "a mapping of keys to values", "check the file")
    return values


def parse(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Checks values against a settings class.

    Args:
        kind: the settings class.
        values: as read from YAML.
        where: names the source in messages, e.g. the file's path.

    Raises:
        SettingsError: naming every fault: unknown keys with the nearest known one, missing keys, wrong values.
    """
    try:
        return kind.model_validate(dict(values))
    except pydantic.ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors()]
        raise SettingsError("\n".join(f"{where}: {fault}" for fault in faults)) from None


def _fault(kind: type[Settings], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(kind, fault["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return f"unknown key `{key}`; {hint}"
    if fault["type"] == "missing":
        return f"the key `{key}` is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = repr(fault.get("input"))
    return f"`{key}` is {shown if len(shown) < 80 else shown[:77] + '...'}: {message}" if key else message


def _keys_at(kind: Any, location: Iterable[str | int]) -> list[str]:
    """The known keys of the settings class at a place within `kind`; follows lists, mappings and unions."""
    kinds = [kind]
    for part in location:
        following: list[Any] = []
        for candidate in kinds:
            if isinstance(candidate, type) and issubclass(candidate, Settings):
                field = candidate.model_fields.get(str(part))
                if field is not None:
                    following += _settings_in(field.annotation)
                # A union's location names its member (a tag or a class name), a list's or mapping's an index or key:
                # neither leads to another class.
                else:
                    following.append(candidate)
        kinds = following
    return sorted({name for candidate in kinds for name in candidate.model_fields})


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _settings_in(part)]


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
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise SettingsError(f"`{key}`: `{part}` holds a value, not keys", "a key that has keys below it", "")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SettingsError(f"`{assignment}`: the value is not valid YAML", "key=value", "quote it") from None
    return result


def _copy(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _copy(value) for key, value in values.items()}
    return [_copy(value) for value in values] if isinstance(values, list) else values


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(text: str) -> str:
    """Replaces `${NAME}` and `${NAME:-default}` by environment variables.

    Raises:
        SettingsError: if a variable without a default is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise SettingsError(
                f"the environment variable {name} is not set", f"a value, since `{text}` uses it", f"set {name}"
            )
        return found

    return _VARIABLE.sub(value, text)


_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def byte_count(text: str | int) -> int:
    """Reads a size such as `2GiB`, `500 MB` or a plain number of bytes.

    Raises:
        ValueError: if it is no size.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(text))
    if not match or match.group(2).upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write one like 2GiB or 500MB")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])
