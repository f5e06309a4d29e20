"""landfuse in QGIS: a Processing provider that runs the `landfuse` command of another Python environment.

Nothing of landfuse is imported into QGIS, whose GDAL, PROJ and Python are other ones.
"""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Called by QGIS."""
    from .provider import Plugin

    return Plugin()
