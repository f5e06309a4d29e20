"""Codes and classes: one becomes the other, and what is said of legends and labels that are wrong."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landfuse.errors import SceneError, SettingsError
from landfuse.legend import UNLABELLED, LandClass, Legend

LEGEND = Legend((LandClass("water", 7, "#0000FF"), LandClass("wood", 0, "#00ff00"), LandClass("town", 254, "#FF0010")))
TABLE = {7: 0, 0: 1, 254: 2}


@given(st.lists(st.sampled_from([0, 7, 254, 255]), min_size=1, max_size=40))
def test_codes_become_classes_and_codes_again(codes: list[int]) -> None:
    array = np.array(codes, dtype=np.uint8).reshape(1, -1)
    classes = LEGEND.to_classes(array)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[TABLE.get(code, UNLABELLED) for code in codes]]
    np.testing.assert_array_equal(LEGEND.to_codes(classes), array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64"])
def test_codes_of_any_type(dtype: str) -> None:
    codes = np.array([[7, 0], [254, 255]], dtype=dtype)
    assert LEGEND.to_classes(codes).tolist() == [[0, 1], [2, UNLABELLED]]


def test_nan_is_unlabelled() -> None:
    assert LEGEND.to_classes(np.array([7.0, np.nan], dtype=np.float32)).tolist() == [0, UNLABELLED]


@pytest.mark.parametrize("number", [1.5, np.inf, -np.inf, 1e300])
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_no_codes(number: float) -> None:
    with pytest.raises(SceneError, match=r"x\.tif hold"):
        LEGEND.to_classes(np.array([7.0, number]), where="x.tif")


def test_codes_that_the_legend_lacks() -> None:
    codes = np.array([[7, -1], [300, 3]], dtype=np.int16)
    with pytest.raises(SceneError, match=r"x\.tif hold the codes -1, 3, 300, which the legend lacks") as caught:
        LEGEND.to_classes(codes, where="x.tif")
    assert "only 7, 0, 254" in str(caught.value)
    unlisted = Counter[str]()
    assert LEGEND.to_classes(codes, unlisted=unlisted).tolist() == [[0, UNLABELLED], [UNLABELLED, UNLABELLED]]
    assert unlisted == {"-1": 1, "3": 1, "300": 1}
    assert LEGEND.to_classes(codes, ignored=[-1, 3, 300]).tolist() == [[0, UNLABELLED], [UNLABELLED, UNLABELLED]]
    with pytest.raises(SceneError, match="hold the code 300, which"):
        LEGEND.to_classes(codes, ignored=[-1, 3])


def test_many_codes_that_the_legend_lacks_are_not_all_listed() -> None:
    with pytest.raises(SceneError, match=r"codes 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, \.\.\., which"):
        LEGEND.to_classes(np.arange(200))


def test_an_ignored_code_wins_over_its_class() -> None:
    assert LEGEND.to_classes(np.array([7, 0]), ignored=[7]).tolist() == [UNLABELLED, 1]


def test_a_legend_is_a_sequence() -> None:
    assert len(LEGEND) == 3
    assert LEGEND[1].name == "wood"
    assert [c.code for c in LEGEND] == LEGEND.codes.tolist() == [7, 0, 254]
    assert LEGEND.names == ["water", "wood", "town"]
    assert LEGEND[2].rgb == (255, 0, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({"name": f"wa{odd}ter"}, "holds a control character, or half of one")
            for odd in ("\0", "\t", "\n", "\x0b", "\x7f", "\x85", "\ud83c", "\uffff")
        ),
        ({"code": 255}, "the class `a` has the code 255"),
        ({"code": -1}, "the class `a` has the code -1"),
        ({"colour": "red"}, "the class `a` has the colour 'red'"),
        ({"colour": "#12345"}, "the class `a` has the colour '#12345'"),
    ],
)
def test_classes_that_are_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LandClass(**{"name": "a", "code": 1, "colour": "#123456", **change})


def test_names_in_any_language() -> None:
    for name in ('Straße <alt> & "neu"', "森林", "forêt", "\U0001f332 pines", "-", "=1"):
        assert LandClass(name, 1, "#123456").name == name


def test_legends_that_are_wrong() -> None:
    one = LandClass("a", 1, "#000000")
    with pytest.raises(SettingsError, match="the legend is empty"):
        Legend(())
    with pytest.raises(SettingsError, match="uses the name a more than once"):
        Legend((one, LandClass("a", 2, "#000000")))
    with pytest.raises(SettingsError, match="uses the code 1 more than once"):
        Legend((one, LandClass("b", 1, "#000000")))


def test_codes_are_turned_piece_by_piece_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    legend = Legend((LandClass("a", 7, "#000000"), LandClass("b", 3, "#000000")))
    rng = np.random.default_rng(0)
    codes = rng.choice([3, 7, 9, 255], (13, 11))
    expected = np.select([codes == 7, codes == 3], [0, 1], UNLABELLED)
    wrong = codes.copy()
    wrong[0, 3], wrong[12, 1] = 200, 100
    tracemalloc.start()
    legend.to_classes(np.full((2048, 2048), 7, np.uint8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * 2048**2, "at once it took 27 bytes a pixel"
    monkeypatch.setattr("landfuse.legend._CHUNK", 10)
    for kind in (np.int64, np.uint8, np.float32):
        np.testing.assert_array_equal(legend.to_classes(codes.astype(kind), ignored=[9]), expected)
        with pytest.raises(SceneError, match=r"hold the codes 100, 200, which"):
            legend.to_classes(wrong.astype(kind), ignored=[9])
    assert legend.to_classes(np.zeros((0, 4), np.uint8)).shape == (0, 4)


def test_a_legend_of_codes_and_names_has_the_colours_of_the_names() -> None:
    legend = Legend.of([(7, "Wasser"), (3, "plot A"), (9, "Forêt")])
    assert [(c.code, c.name, c.colour) for c in legend] == [
        *((7, "Wasser", "#3075D1"), (3, "plot A", "#E69F00"), (9, "Forêt", "#2D701F")),
    ]
    with pytest.raises(SettingsError, match="the code 1 more than once"):
        Legend.of([(1, "a"), (1, "b")])


def test_names_are_equal_however_their_accents_were_typed() -> None:
    typed_on_a_mac = "Gru\u0308nland"
    assert LandClass(typed_on_a_mac, 1, "#000000") == LandClass("Gr\u00fcnland", 1, "#000000")
    with pytest.raises(SettingsError, match="more than once"):
        Legend((LandClass(typed_on_a_mac, 1, "#000000"), LandClass("Gr\u00fcnland", 2, "#000001")))


@pytest.mark.parametrize("nodata", [None, 255, 3, float("nan")])
def test_a_nodata_value_that_is_no_class(nodata: float | None) -> None:
    LEGEND.refuse_nodata(nodata, "x.tif", "remove it")


def test_a_nodata_value_that_is_a_class() -> None:
    with pytest.raises(SceneError, match=r"0 is the nodata value of x\.tif, and the code of the class `wood`"):
        LEGEND.refuse_nodata(0.0, "x.tif", "remove it")
