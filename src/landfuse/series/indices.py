"""Spectral indices by name, with the formulas of spyndex, an optional dependency; no other file imports it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import spyndex
from numpy.typing import NDArray

from landfuse.errors import SceneError, SettingsError, few, nearest
from landfuse.rasters.raster import plain_name


def inputs_of(
    index: str, names: Sequence[str], wavelengths: Sequence[float], sensor: str, roles: Mapping[str, str]
) -> dict[str, int | float]:
    """What an index is computed from: spyndex's symbol -> the place of a band, from 0, or the value of a constant.

    Args:
        index: its name in spyndex, as `NDVI`.
        names: of the bands.
        wavelengths: of the bands, nm; none where they are not known.
        sensor: in words; its bands are known by the names that spyndex lists for such a platform.
        roles: symbol -> name of a band, which wins.

    Raises:
        SettingsError: if there is no such index.
        SceneError: if one of its bands is not found.
    """
    if index not in spyndex.indices:
        raise SettingsError(
            f"there is no spectral index `{index}`",
            "the name of one in spyndex's list, as NDVI",
            nearest(index, spyndex.indices, "see https://awesome-ee-spectral-indices.readthedocs.io"),
        )
    found: dict[str, int | float] = {}
    for symbol in spyndex.indices[index].bands:
        if symbol in roles or symbol in spyndex.bands:
            found[symbol] = _band(index, symbol, names, wavelengths, sensor, roles)
        elif symbol in spyndex.constants and spyndex.constants[symbol].default is not None:
            found[symbol] = float(spyndex.constants[symbol].default)
        else:
            raise SceneError(f"`{index}` needs `{symbol}`, which is no band", "an index of bands alone", "leave it out")
    return found


def _band(
    index: str, symbol: str, names: Sequence[str], wavelengths: Sequence[float], sensor: str, roles: Mapping[str, str]
) -> int:
    known = spyndex.bands.get(symbol)
    plain = [plain_name(name) for name in names]
    wanted = [roles[symbol]] if symbol in roles else []
    if known is not None and not wanted:
        platform = re.sub(r"\W|_", "", sensor.casefold())
        listed = [p for key in dir(known) if platform and key.startswith(platform) for p in [getattr(known, key)]]
        wanted = [*(p.band for p in listed if hasattr(p, "band")), symbol, known.common_name]
    for name in wanted:
        if plain_name(name) in plain:
            return plain.index(plain_name(name))
    if known is not None and symbol not in roles and wavelengths:
        low, high = known.min_wavelength, known.max_wavelength
        away = np.abs(np.array(wavelengths) - (low + high) / 2)
        if away.min() <= (high - low) / 2:
            return int(away.argmin())
    raise SceneError(
        f"`{index}` needs the band {symbol}"
        + (f" ({known.long_name}, {known.min_wavelength} to {known.max_wavelength} nm)" if known is not None else "")
        + f", and the bands are {few(names, 12)}",
        "bands with wavelengths, with names like `red` and `nir`, or a `sensor` whose bands spyndex names",
        f"name it by `dates: roles: {{{symbol}: ...}}`; or its `sensor`, as Sentinel-2A",
    )


def index_of(
    index: str, inputs: Mapping[str, int | float], values: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """An index of values whose bands lie along an axis; NaN where a band has no data or the formula gives none."""
    with np.errstate(all="ignore"):
        found = spyndex.computeIndex(
            index, {key: values.take(n, axis) if isinstance(n, int) else n for key, n in inputs.items()}
        )
    return np.where(np.isfinite(found), found, np.nan).astype(np.float32)
