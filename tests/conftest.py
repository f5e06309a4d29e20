"""Where the tests find real data and golden tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden tensors, from LANDFUSE_SHARED or beside the checkout."""
    folder = Path(os.environ.get("LANDFUSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set LANDFUSE_SHARED to its place")
    return folder
