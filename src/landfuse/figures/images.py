"""Pictures for pages: classes with few colours, photographs, and how they become text in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from landfuse.legend import UNLABELLED

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Coded:
    """A picture of few colours, such as a map.

    Args:
        values: (h, w) uint8, places in `colours`; `UNLABELLED` is transparent.
        colours: at most 255, no two equal, so that a pixel's colour gives its value.
    """

    values: NDArray[np.uint8]
    colours: tuple[Colour, ...]

    def halved(self) -> Coded:
        """Every other pixel of it."""
        return Coded(self.values[::2, ::2], self.colours)

    def encoded(self) -> tuple[str, bytes]:
        """Its type and its bytes."""
        count = len(self.colours)
        values = np.where(self.values == UNLABELLED, np.uint8(count), self.values)
        image = Image.fromarray(values)
        image.putpalette([part for colour in (*self.colours, (0, 0, 0)) for part in colour])
        return _saved(image, "PNG", transparency=count, optimize=True)


@dataclass(frozen=True)
class Photograph:
    """A picture of many colours.

    Args:
        image: (h, w, 3) uint8.
        known: (h, w), false where it is transparent.
        exact: up to this many pixels it is kept exact: each pixel can be seen.
    """

    image: NDArray[np.uint8]
    known: NDArray[np.bool_]
    exact: int = 96 * 96

    def halved(self) -> Photograph:
        """Every other pixel of it."""
        return replace(self, image=self.image[::2, ::2], known=self.known[::2, ::2])

    def encoded(self) -> tuple[str, bytes]:
        """Its type and its bytes."""
        alpha = np.where(self.known, np.uint8(255), np.uint8(0))[:, :, None]
        values = self.image if self.known.all() else np.concatenate([self.image, alpha], axis=2)
        image = Image.fromarray(np.ascontiguousarray(values))
        if self.known.size <= self.exact:
            return _saved(image, "PNG", optimize=True)
        return _saved(image, "WEBP", quality=84, method=4)


Picture = Coded | Photograph


def _saved(image: Image.Image, kind: str, **options: object) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"image/{kind.lower()}", buffer.getvalue()


def unlike(colours: Sequence[Colour]) -> tuple[Colour, ...]:
    """The colours, with those that occur twice moved by a step or more that nobody sees."""
    result: list[Colour] = []
    for red, green, blue in colours:
        step = 0
        while (moved := (red, green, blue + step if blue < 128 else blue - step)) in result:
            step += 1
        result.append(moved)
    return tuple(result)


def data_uri(picture: Picture) -> str:
    """The picture as text that a page can hold."""
    kind, content = picture.encoded()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def data_uris(pictures: Sequence[Picture], room: int) -> list[str]:
    """Pictures as text of at most `room` characters in all; the largest are halved until they fit."""
    kept = list(pictures)
    uris = [data_uri(picture) for picture in kept]
    while sum(map(len, uris)) > room:
        largest = max(range(len(uris)), key=lambda i: len(uris[i]))
        if len(uris[largest]) < 400:
            break
        kept[largest] = kept[largest].halved()
        uris[largest] = data_uri(kept[largest])
    return uris
