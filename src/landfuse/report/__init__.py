"""The report of a run: one HTML file that needs nothing else."""

from landfuse.report.page import LARGEST, report

__all__ = ["LARGEST", "report"]
