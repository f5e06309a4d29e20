"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from landfuse.reporting.page import LARGEST, report

__all__ = ["LARGEST", "report"]
