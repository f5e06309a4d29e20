"""The legend: names, codes and colours of the classes.

A *code* is what a file holds (0..254), a *class* is its place in the legend (0..K-1). Files of labels and
maps hold codes, tensors hold classes; this module is where one becomes the other.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landfuse.errors import SceneError, SettingsError
from landfuse.markup import swatch, table
from landfuse.palette import COLOUR, class_colours, rgb

UNLABELLED = 255
"""The value of a pixel without a label (in targets) or without a class (in maps)."""

_CHUNK = 1 << 20  # pixels at a time: the place of a pixel's code takes 8 bytes, its class 1


def nfc(text: str) -> str:
    """Text whose accents are one character with their letter, however it was typed, so that equal words are equal."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class LandClass:
    """One land-cover class.

    Args:
        name: for people.
        code: its value in label rasters and maps, 0..254.
        colour: `#RRGGBB`.
        scored: whether its own scores enter the means over classes (AA, mF1, mIoU).

    Examples:
        >>> lf.LandClass("water", 3, "#0072B2").rgb
        (0, 114, 178)
    """

    name: str
    code: int
    colour: str
    scored: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", nfc(self.name))
        if any(unicodedata.category(c) in ("Cc", "Cs") or c in "\ufffe\uffff" for c in self.name):
            raise SettingsError(
                f"the class name {self.name!r} holds a control character, or half of one",
                "a name that every file can hold",
                "write it in `legend` without that character; copied text often brings some that are not seen",
            )
        if not 0 <= self.code < UNLABELLED:
            raise SettingsError(
                f"the class `{self.name}` has the code {self.code}",
                f"a whole number from 0 to {UNLABELLED - 1}; {UNLABELLED} means unlabelled",
                "give it another code in `legend`",
            )
        if not COLOUR.fullmatch(self.colour):
            raise SettingsError(
                f"the class `{self.name}` has the colour {self.colour!r}",
                "a colour like '#1F77B4'",
                "write it in quotes, since # starts a comment in YAML",
            )

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as three numbers from 0 to 255."""
        return rgb(self.colour)


@dataclass(frozen=True)
class Legend:
    """The classes of a scene, in order; iterating yields `LandClass`es, the length is K.

    Examples:
        >>> import numpy as np
        >>> legend = lf.Legend((lf.LandClass("water", 3, "#0072B2"), lf.LandClass("forest", 7, "#009E73")))
        >>> legend.to_codes(np.array([[1, 0]], np.uint8)).tolist(), legend.names
        ([[7, 3]], ['water', 'forest'])
    """

    classes: tuple[LandClass, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise SettingsError("the legend is empty", "at least one class", "list the classes under `legend`")
        for what in ("name", "code"):
            values = [getattr(c, what) for c in self.classes]
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise SettingsError(
                    f"the legend uses the {what} {', '.join(twice)} more than once",
                    f"one {what} per class",
                    "merge the classes or rename one of them",
                )
        if not any(c.scored for c in self.classes):
            raise SettingsError(
                "no class of the legend is scored", "at least one without `scored: false`", "score a class"
            )

    @classmethod
    def of(cls, classes: Sequence[tuple[int, str]], known: Mapping[str, str] | None = None) -> Legend:
        """The legend of (code, name), its colours as known by name, else by `landfuse.palette.class_colours`."""
        names = tuple(name for _, name in classes)
        colours = class_colours(names, tuple(map((known or {}).get, names)))
        return cls(tuple(LandClass(name, code, colour) for (code, name), colour in zip(classes, colours, strict=True)))

    def _repr_html_(self) -> str:
        rows = [(swatch(one.colour), one.code, one.name, "" if one.scored else "not scored") for one in self]
        return table("Legend", ("", "code", "class", ""), rows)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[LandClass]:
        return iter(self.classes)

    def __getitem__(self, index: int) -> LandClass:
        return self.classes[index]

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [c.name for c in self.classes]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Whether each class enters the means over classes: (K,)."""
        return np.array([c.scored for c in self.classes], dtype=bool)

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Codes of the classes: (K,) uint8."""
        return np.array([c.code for c in self.classes], dtype=np.uint8)

    def refuse_nodata(self, nodata: float | None, where: str, do: str) -> None:
        """Raises a SceneError if the nodata value of a raster of codes is a class, whose pixels would all be left out.

        Args:
            do: how the nodata value is changed.
        """
        for one in self.classes:
            if one.code == nodata:
                raise SceneError(
                    f"{one.code} is the nodata value of {where}, and the code of the class `{one.name}`",
                    "a nodata value that is no class",
                    f"{do} if these pixels are `{one.name}`, else change the class or its code in the legend",
                )

    def to_classes(
        self,
        codes: NDArray[np.generic],
        ignored: Iterable[int] = (),
        unlisted: Counter[str] | None = None,
        where: str = "the labels",
    ) -> NDArray[np.uint8]:
        """Converts codes, as files hold them, to classes.

        Args:
            codes: any shape, whole numbers.
            ignored: further codes that mean "unlabelled" (255 always does).
            unlisted: counts the pixels of codes outside the legend and `ignored`, which are then unlabelled; by default
                such codes are an error.
            where: names the source in the message.

        Returns:
            The same shape, uint8: 0..K-1, or `UNLABELLED`.

        Raises:
            SceneError: where an unlisted code occurs and is not counted, or a code is no whole number.
        """
        table = {c.code: index for index, c in enumerate(self.classes)}
        table.update({int(code): UNLABELLED for code in (*ignored, UNLABELLED)})
        flat, unknown = codes.reshape(-1), Counter[int]()
        classes = np.empty(flat.size, np.uint8)
        for start in range(0, flat.size, _CHUNK):
            whole = whole_codes(flat[start : start + _CHUNK], where)
            present, inverse, counts = np.unique(whole, return_inverse=True, return_counts=True)
            of_present = [table.get(int(code), UNLABELLED) for code in present]
            classes[start : start + _CHUNK] = np.array(of_present, np.uint8)[inverse]
            found = dict(zip(present.tolist(), counts.tolist(), strict=True))
            unknown.update({code: number for code, number in found.items() if int(code) not in table})
        if unlisted is not None:
            unlisted.update({str(code): unknown[code] for code in sorted(unknown)})
        elif unknown:
            shown = ", ".join(map(str, sorted(unknown)[:10])) + (", ..." if len(unknown) > 10 else "")
            raise SceneError(
                f"{where} hold the code{'s' if len(unknown) > 1 else ''} {shown}, which the legend lacks",
                f"only {', '.join(str(c.code) for c in self.classes)}, or a code listed as ignored",
                "add the class to `legend`, or list the code under `labels: ignored:`",
            )
        return classes.reshape(codes.shape)

    def to_codes(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Converts classes (0..K-1 or `UNLABELLED`) to the codes that files hold, same shape, uint8."""
        table = np.full(256, UNLABELLED, dtype=np.uint8)
        table[: len(self)] = self.codes
        return table[classes]


def whole_codes(codes: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    """Codes as whole numbers, `UNLABELLED` for NaN."""
    if codes.dtype.kind != "f":
        return codes.astype(np.uint8) if codes.dtype == bool else codes
    known = np.where(np.isnan(codes), UNLABELLED, codes)
    wrong = known[(np.abs(known) > 2**31) | (known != np.rint(known))]
    if wrong.size:
        raise SceneError(
            f"{where} hold the number {wrong[0]:.10g}",
            "whole-number codes of at most 2,147,483,648",
            "check that this is a label raster",
        )
    return known.astype(np.int64)
