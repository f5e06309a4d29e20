"""Errors of several faults."""

from __future__ import annotations

from landfuse.errors import FaultsError, MissingFileError, SceneError


def test_of_many_faults_alike_the_first_are_named_and_the_others_counted() -> None:
    faults = [MissingFileError(f"there is no {number}", "a raster", "check the path") for number in range(1200)]
    other = SceneError("band 3 is empty", "values")
    error = FaultsError([*faults[:3], other, *faults[3:]])
    assert [line for line in str(error).splitlines() if not line.startswith("  ")] == [
        *(f"there is no {number}" for number in range(5)),
        "and 1,195 more like the last",
        "band 3 is empty",
    ]
    assert len(error.faults) == 1201
    assert "more like" not in str(FaultsError(faults[:5]))
