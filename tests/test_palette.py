"""Colours as others see them, against numbers of the colorspacious library, and pairs that are known to be confused."""

from __future__ import annotations

import numpy as np
import pytest

from landfuse.palette import NAMED, PALETTE, TOO_CLOSE, VISIONS, class_colours, close_pairs, distances, lab, rgb, seen
from landfuse.reporting.layers import CONFIDENCE, RIGHT_WRONG, ROLE_COLOURS

ORANGE, SKY, GREEN, BLUE = (230, 159, 0), (86, 180, 233), (0, 158, 115), (26, 91, 171)


def test_cielab_is_that_of_another_library() -> None:
    # colorspacious 1.1.2, cspace_convert(..., "sRGB255", "CIELab")
    known = [[70.6062, 16.483, 74.6829], [69.8261, -12.0171, -34.7744], [57.7421, -45.7406, 12.7545]]
    known.append([38.9704, 10.4819, -48.4331])
    found = lab(seen([ORANGE, SKY, GREEN, BLUE], "full colour vision"))
    np.testing.assert_allclose(found, known, atol=0.03)  # its white point has five digits
    np.testing.assert_allclose(lab([0.0, 0.0, 0.0]), 0, atol=1e-9)
    np.testing.assert_allclose(lab([1.0, 1.0, 1.0]), [100, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("vision", "known"),
    [
        # colorspacious 1.1.2, "sRGB1+CVD" with severity 100; sRGB within 0..1
        ("protanopia", [[0.60773, 0.70167, 0.92359], [0.6053, 0.5711, 0.44159], [0.18373, 0.38686, 0.68241]]),
        ("deuteranopia", [[0.52836, 0.64345, 0.91032], [0.54218, 0.52515, 0.4623], [0.01285, 0.33637, 0.66439]]),
    ],
)
def test_what_others_see_is_that_of_another_library(vision: str, known: list[list[float]]) -> None:
    linear = seen([SKY, GREEN, BLUE], vision)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb, known, atol=1e-4)


@pytest.mark.parametrize("vision", VISIONS)
def test_grey_stays_grey_for_everyone(vision: str) -> None:
    np.testing.assert_allclose(seen([[128, 128, 128]], vision), seen([[128, 128, 128]], VISIONS[0]), atol=2e-6)


def test_red_and_green_of_one_lightness_are_found_close_and_named_by_the_vision() -> None:
    red, green, blue = (196, 90, 40), (120, 120, 30), (20, 40, 200)
    found = close_pairs([red, blue, green])
    assert [(pair.first, pair.second) for pair in found] == [(0, 2)]
    assert found[0].vision in ("protanopia", "deuteranopia")
    assert found[0].distance == pytest.approx(distances([red, green], found[0].vision)[0, 1])
    assert distances([red, green], VISIONS[0])[0, 1] > 3 * found[0].distance


def test_equal_colours_are_close_in_every_vision_and_far_ones_in_none() -> None:
    assert close_pairs([BLUE, BLUE])[0].distance == 0
    assert close_pairs([(0, 0, 0), (255, 255, 255)]) == []
    assert close_pairs([BLUE]) == close_pairs([]) == []


def test_the_default_colours_of_classes_differ_from_each_other_and_from_white() -> None:
    colours = [rgb(colour) for colour in PALETTE]
    assert len(colours) == 40
    between = distances([*colours, (255, 255, 255)], "full colour vision")
    between[np.diag_indices(41)] = np.inf
    assert between[:40, :40].min() > 17
    assert between[40].min() > 19, "unlabelled pixels are white on paper"


def test_the_first_default_colours_differ_in_every_vision() -> None:
    colours = [rgb(colour) for colour in PALETTE[:18]]
    assert close_pairs(colours[:12], 16) == []
    assert close_pairs(colours, 15) == []
    white = [pair for pair in close_pairs([*colours, (255, 255, 255)], 19) if pair.second == 18]
    assert white == [], "unlabelled pixels are white on paper"


def test_the_colours_of_names_differ_from_each_other_and_from_white() -> None:
    between = distances([*map(rgb, NAMED), (255, 255, 255)], "full colour vision")
    between[np.diag_indices(len(between))] = np.inf
    assert between.min() > TOO_CLOSE
    assert between[-1].min() > 19
    common = "water sea wetland mangrove forest shrub grass crop built road bare sand snow moss"
    colours = class_colours(tuple(common.split()))
    assert set(colours) <= set(NAMED)
    assert close_pairs([rgb(colour) for colour in colours], 14) == [], "in any vision"


@pytest.mark.parametrize(
    ("names", "colour"),
    [
        ("water WATER Wasser Gewässer agua вода 水体 Lakes", "#3075D1"),
        ("forest Forêts Wald bosque лес 林地 Trees", "#2D701F"),
        ("Wasserfläche freshwater", "#3075D1"),
        ("Waldflächen Auwald rainforest", "#2D701F"),
        ("Offenboden Rohböden", "#BC8F5C"),
        ("buildings Gebäude bâti edificação houses 建筑", "#A8484E"),
    ],
)
def test_a_known_name_has_its_colour_in_any_language(names: str, colour: str) -> None:
    assert {class_colours((name,)) for name in names.split()} == {(colour,)}


def test_a_longer_name_has_the_colour_of_its_last_or_first_word_and_a_denied_one_none() -> None:
    known = {"Permanent water (3)": "#3075D1", "stressed grass": "#A8D658", "bosque de ribera": "#2D701F"}
    assert class_colours(tuple(known)) == tuple(known.values())
    assert class_colours(("Non-forest", "no water", "field 1", "", "???", "nonforest")) == PALETTE[:6]
    assert class_colours(("Non-irrigated arable land",)) == ("#E39E22",)


def test_no_two_of_forty_classes_have_one_colour_and_given_ones_stay() -> None:
    assert class_colours(tuple(map(str, range(42)))) == (*PALETTE, *PALETTE[:2])
    waters = tuple(f"{'water' if i % 2 else 'class'} {i}" for i in range(40))
    given = ("#3075D1", *[None] * 38, "#000000")
    found = class_colours(waters, given)
    assert (found[0], found[39]) == ("#3075D1", "#000000")
    assert found == class_colours(waters, given)
    assert len(set(found)) == 40
    few = class_colours(("river", "lake", "pond", "E69F00?", "plot"), (None, None, None, "#E69F00", None))
    assert close_pairs([rgb(colour) for colour in few], 0) == []
    assert distances([rgb(colour) for colour in few], VISIONS[0])[np.triu_indices(5, 1)].min() > TOO_CLOSE


def test_the_report_s_own_colours_do_not_rest_on_hue_alone() -> None:
    assert close_pairs(RIGHT_WRONG, 60) == []
    assert close_pairs(list(ROLE_COLOURS.values()), 30) == []
    for vision in VISIONS:
        lightness = lab(seen(CONFIDENCE, vision))[:, 0]
        assert (np.diff(lightness) > 0).all(), f"confidence does not grow lighter with {vision}"
    assert abs(np.diff(lab(seen(RIGHT_WRONG, VISIONS[0]))[:, 0]))[0] > 3 * TOO_CLOSE
