"""Where `landfuse fetch` puts data, and scene files find them."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LANDFUSE_DATA"


def data_folder() -> Path:
    """The folder that the environment variable LANDFUSE_DATA names, else the platform's folder for a user's caches."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("landfuse"))


def in_data_folder(text: str) -> str:
    """Puts the data folder in the place of `${LANDFUSE_DATA}`, which has no other default."""
    mark = f"${{{VARIABLE}}}"
    return text.replace(mark, str(data_folder())) if mark in text else text
