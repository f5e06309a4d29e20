"""Pictures from Python: what the figures hold, against the arrays that they show."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

import landfuse as lf
from landfuse.accuracy.bootstrap import Interval
from landfuse.figures.figures import (
    INK,
    LINES,
    areas_figure,
    check_picture,
    class_image,
    confusion_figure,
    curves_figure,
    dark_variables,
    forest_figure,
    reliability_figure,
    sample_figure,
    svg,
)
from landfuse.figures.overview import drawn_values, drawn_windows, overview, side_by_side
from landfuse.legend import UNLABELLED
from landfuse.rasters.geotiff_writer import GeotiffWriter, write_raster
from landfuse.simulate.scene import simulate, simulate_flat


def panels(figure: object) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes if axis.get_images()}  # type: ignore[attr-defined]


def legend_of(figure: object) -> dict[str, tuple[float, ...]]:
    (legend,) = figure.legends  # type: ignore[attr-defined]
    return {t.get_text(): h.get_facecolor()[:3] for t, h in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def test_a_scene_shows_its_modalities_and_labels() -> None:
    scene = simulate(60, 80, 1, hyperspectral_bands=6)
    figure = lf.plot(scene)[0].figure
    shown = panels(figure)
    assert [title.split(":")[0] for title in shown] == ["hsi", "height", "sar", "labels"]
    for title, axis in shown.items():
        image = axis.get_images()[0].get_array()
        name = title.split(":")[0]
        wanted = class_image(scene.labels, scene.legend) if name == "labels" else overview(scene, name).on_white
        np.testing.assert_array_equal(image, wanted)
    present = {scene.legend[k].name: to_rgb(scene.legend[k].colour) for k in np.unique(scene.labels) if k != UNLABELLED}
    assert legend_of(figure) == {**present, "none": (1.0, 1.0, 1.0)}
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_some_modalities_by_some_bands_and_a_scene_without_labels() -> None:
    scene = simulate_flat(20, 30, {"a": 5, "b": 2})
    bare = lf.Scene("bare", scene.grid, scene.modalities, scene.legend)
    figure = lf.plot(bare, modalities=["a"], bands={"a": [3]}).figure
    (axis,) = panels(figure).values()
    image = np.asarray(axis.get_images()[0].get_array())
    np.testing.assert_array_equal(image, overview(scene, "a", bands=(2,)).on_white)
    assert (image[..., 0] == image[..., 1]).all()
    assert figure.legends == []
    with pytest.raises(lf.LandfuseError, match="bands 6"):
        lf.plot(bare, modalities=["a"], bands={"a": [6]})
    for wrong in ({"modalities": ["x"]}, {"bands": {"x": [1]}}):
        with pytest.raises(lf.LandfuseError, match="no modality x"):
            lf.plot(bare, **wrong)


def test_a_confusion_shows_its_counts_and_shares() -> None:
    matrix = np.array([[30, 10, 0], [0, 5, 5], [0, 0, 0]])
    axis = lf.plot(lf.Confusion(3, matrix), names=["low", "high", "none"])
    np.testing.assert_allclose(axis.get_images()[0].get_array(), [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 0]])
    reported = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axis.texts}
    assert reported[0, 0] == "30\n75%"
    assert reported[0, 1] == "10\n25%"
    assert reported[1, 0] == "0"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("map", "truth")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["low", "high", "none"]
    assert [t.get_text() for t in lf.plot(lf.Confusion(2)).get_xticklabels()] == ["0", "1"]
    assert not confusion_figure(np.eye(40, dtype=np.int64), ["x"] * 40).axes[0].texts, "no room for numbers"


NONE = Interval(math.nan, math.nan, math.nan)
HISTORY = [{"epoch": 0.0, "train_loss": 1.5, "val_mIoU": 0.2}, {"epoch": 1.0, "train_loss": 0.75, "val_mIoU": 0.4}]


def test_curves_of_losses_and_scores_are_apart() -> None:
    loss, score = curves_figure(HISTORY, 1).axes
    assert [loss.get_title(), score.get_title()] == ["Training loss", "Validation scores"]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 1.5], [2, 0.75]])
    np.testing.assert_array_equal(score.lines[0].get_xydata(), [[1, 0.2], [2, 0.4]])
    assert score.get_ylim() == pytest.approx((0.19, 0.41)), "zoomed to the values"
    assert [axis.get_yscale() for axis in (loss, score)] == ["linear", "linear"]
    falling = [{"epoch": 0.0, "train_loss": 90.0}, {"epoch": 1.0, "train_loss": 1.0}]
    assert curves_figure(falling, None, ("loss",)).axes[0].get_yscale() == "log"
    alone = curves_figure(HISTORY, None, ("score",))
    assert [axis.get_title() for axis in alone.axes] == ["Validation scores"]
    assert alone.words == "mIoU from 0.200 to 0.400."


def test_areas_are_bars_beside_their_corrected_values() -> None:
    rows = [
        {"name": "water", "colour": "#3075D1", "fraction": 0.25, "corrected": Interval(0.3, 0.2, 0.35)},
        {"name": "a very long name that needs two lines", "colour": "#2D701F", "fraction": 0.75, "corrected": NONE},
    ]
    figure = areas_figure(rows)
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [25, 75]
    assert [tick.get_text().count("\n") for tick in axis.get_yticklabels()] == [0, 1]
    (bars,) = [container for container in axis.containers if hasattr(container, "has_xerr")]
    assert bars.lines[0].get_xdata().tolist() == [30]
    (ends,) = bars.lines[2][0].get_segments()
    np.testing.assert_allclose(ends[:, 0], [20, 35])
    assert figure.words == "water 25.0%, corrected 30.0% (20.0% to 35.0%); a very long name that needs two lines 75.0%"


def test_differences_stand_against_zero() -> None:
    long = "two_branch hsi + lidar model.view=15 training.epochs=40 samples.balanced=false"
    beyond, within = Interval(0.02, 0.01, 0.03), Interval(-0.01, -0.03, 0.02)
    figure = forest_figure({"forest": {"OA": beyond, "mIoU": within}, long: {"OA": NONE}}, "Difference to a")
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["OA", "mIoU"]
    (bar,) = first.containers
    np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 0], [0.01, 0.03])
    filled = [axis.containers[0].lines[0].get_markerfacecolor() for axis in figure.axes]
    assert filled == [LINES[0][0], "white"], "filled where the interval is on one side of zero"
    assert [line.get_xdata()[0] for line in second.lines if line.get_linestyle() == "--"] == [0]
    labels = [tick.get_text() for tick in first.get_yticklabels()]
    assert labels[0] == "forest"
    assert labels[1].count("\n") == 2
    low, high = sorted(first.get_ylim())
    assert low < min(first.get_yticks()) < max(first.get_yticks()) < high
    assert "forest, mIoU: -0.0100 (-0.0300 to +0.0200)" in figure.words
    FigureCanvasAgg(figure).draw()
    low, high = second.get_xlim()
    ticks = [tick.label1 for tick in second.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(label.get_rotation(), label.get_window_extent()) for label in ticks]
    assert all(angle == 0 for angle, _ in boxes)
    assert all(one.x1 < other.x0 for (_, one), (_, other) in itertools.pairwise(boxes)), "they do not overlap"


def test_points_are_drawn_on_the_map(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.figures.figures._LARGEST", 40)
    scene = lf.open_scene(place)
    write_raster(tmp_path / "map.tif", scene.grid, scene.legend.to_codes(scene.labels), legend=scene.legend)
    sample = lf.draw_sample(tmp_path / "map.tif", 60)
    opened = lf.open_map(tmp_path / "map.tif")
    (axis,) = panels(sample_figure(opened, sample.row, sample.col)).values()
    np.testing.assert_array_equal(
        axis.get_images()[0].get_array(), class_image(opened.classes[1::3, 1::3], opened.legend)
    )
    offsets = np.asarray(axis.collections[0].get_offsets())
    np.testing.assert_array_equal(np.floor(offsets * 3 + 1.5), np.stack([sample.col, sample.row], axis=1))


def test_a_picture_for_a_page_has_a_title_words_and_colours_for_both_pages() -> None:
    bins = [{"low": 0.5, "high": 1.0, "pixels": 9, "stated": 0.6, "accuracy": 0.5}]
    first = svg(curves_figure(HISTORY, 1), "one")
    second = svg(reliability_figure({"a < b": {"ECE": 0.1, "bins": bins}}), "two")
    for text, title in ((first, "Training loss, Validation scores"), (second, "a &lt; b: ECE 0.100")):
        root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
        assert root.get("role") == "img"
        assert f">{title}</title>" in text
        assert "<style" not in text, "it would apply to the whole page"
        assert "http" not in text
    assert "> 9</text>" in second, "how many pixels the bin holds"
    assert "0.500 of 9 px stated 0.600" in second
    near = [{"epoch": float(at), "val_OA": 0.46 + at / 100, "val_mIoU": 0.125 + at / 100} for at in range(2)]
    left = re.search(r'x="([\d.]+)"[^>]*>score<', svg(curves_figure(near, 1, ("score",)), "near"))
    assert left is not None
    assert float(left[1]) > 8, "the name of the axis was cut off where ticks became wider after the first layout"
    names = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
    assert not names[0] & names[1], "the ids of two pictures in one page"
    assert "stroke: var(--0b5cad, #0b5cad)" in first
    assert "--0b5cad: #86bdf2;" in dark_variables()


def test_lines_and_text_are_seen_on_both_pages() -> None:
    for pair in (INK, *LINES):
        for colour, page in zip(pair, ("#ffffff", "#1b1f22"), strict=True):
            high, low = sorted((luminance(colour), luminance(page)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_map_is_opened_counted_and_shown(place: Path, tmp_path: Path) -> None:
    scene = lf.open_scene(place)
    classes = scene.labels.copy()
    classes[:10] = UNLABELLED
    classes[classes == 3] = 0
    path = tmp_path / "map.tif"
    write_raster(path, scene.grid, scene.legend.to_codes(classes), legend=scene.legend)
    opened = lf.open_map(path, scene)
    np.testing.assert_array_equal(opened.classes, classes)
    areas = opened.areas()
    assert list(areas) == scene.legend.names
    known = (classes != UNLABELLED).sum()
    for k, area in enumerate(areas.values()):
        assert area.pixels == (classes == k).sum()
        assert area.fraction == pytest.approx(area.pixels / known)
        assert area.hectares == pytest.approx(area.pixels * 100 / 10_000)  # 10 m pixels
    figure = lf.plot(opened).figure
    (axis,) = panels(figure).values()
    np.testing.assert_array_equal(axis.get_images()[0].get_array(), class_image(classes, scene.legend))
    assert set(legend_of(figure)) == {"field 1", "field 2", "field 3", "none"}


def test_a_map_alone_reports_its_names(place: Path, tmp_path: Path) -> None:
    scene = lf.open_scene(place)
    path = tmp_path / "map.tif"
    write_raster(path, scene.grid, scene.legend.to_codes(scene.labels), legend=scene.legend)
    alone = lf.open_map(path)
    assert alone.legend.names == scene.legend.names
    np.testing.assert_array_equal(alone.classes, scene.labels)
    nameless = tmp_path / "codes.tif"
    with GeotiffWriter(nameless, scene.grid) as writer:
        codes = np.full((scene.grid.height, scene.grid.width), 7, np.uint8)
        codes[0] = UNLABELLED
        writer.write(scene.grid.window, codes)
    assert [(c.name, c.code) for c in lf.open_map(nameless).legend] == [("class 7", 7)]
    assert lf.open_map(nameless).areas()["class 7"].fraction == 1


def test_a_map_of_another_place_is_refused(place: Path, tmp_path: Path) -> None:
    scene = lf.open_scene(place)
    write_raster(tmp_path / "map.tif", scene.grid.part(lf.Window(0, 0, 9, 9)), np.ones((9, 9), np.uint8))
    with pytest.raises(lf.LandfuseError, match="has the grid"):
        lf.open_map(tmp_path / "map.tif", scene)
    with pytest.raises(lf.LandfuseError, match="no file"):
        lf.open_map(tmp_path / "gone.tif")
    write_raster(tmp_path / "odd.tif", scene.grid, np.full((96, 96), 9, np.uint8))
    with pytest.raises(lf.LandfuseError, match="hold the code 9"):
        _ = lf.open_map(tmp_path / "odd.tif", scene).classes


def test_scenes_and_scores_are_made_without_drawing() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"  # whoever imports it now fails
        "import landfuse.scenes.scene, landfuse.accuracy.confusion, landfuse.scenes.land_cover_map\n"
    )
    stub = "import types; p = types.ModuleType('landfuse'); p.__path__ = [sys.argv[1]]; sys.modules['landfuse'] = p\n"
    source = str(Path(lf.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{stub}{code}", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_check_found_is_drawn(place: Path) -> None:
    report = lf.check(place / "scene.yaml")
    axes = lf.plot(report)
    titles = [axis.get_title().replace("\n", " ") for axis in axes]
    assert [title.split(":")[0].split(";")[0] for title in titles] == [
        "a", "b", "labels", "split", "labelled pixels by class and role", "leaks by buffer", "a", "b",
    ]  # fmt: skip
    counts, leaks, spectra, boxes = axes[4:]
    drawn = [bar.get_width() for bar in counts.patches]
    assert drawn == np.concatenate([count for count in report.counts.values() if count.any()]).tolist()
    shown = {text.get_text() for text in counts.texts}
    assert shown == {" / ".join(str(report.groups[role][k]) for role in report.groups) for k in range(4)}
    np.testing.assert_allclose(leaks.lines[0].get_ydata(), [100 * row["leaks"] for row in report.by_buffer])
    assert [line.get_color() for line in spectra.lines] == [kind.colour for kind in report.file.legend]
    assert len(boxes.patches) == 2 * 4  # bands and classes
    (scene,), (roles,) = report.scenes, report.roles
    labels = np.asarray(panels(axes[0].figure)["labels"].get_images()[0].get_array())
    (blank,) = np.unique(labels[scene.labels == UNLABELLED], axis=0)
    assert min(np.abs(blank - kind.rgb).max() for kind in report.file.legend) > 30
    assert legend_of(axes[0].figure)["no label"] == pytest.approx(blank / 255)
    np.testing.assert_array_equal(
        labels[scene.labels == 1], np.broadcast_to(scene.legend[1].rgb, labels[scene.labels == 1].shape)
    )
    split = np.asarray(panels(axes[0].figure)["split"].get_images()[0].get_array())
    colours = [split[(roles == value) & (scene.labels != UNLABELLED)] for value in np.unique(roles[roles > 0])]
    assert [len(np.unique(one, axis=0)) for one in colours] == [1, 1, 1]
    assert len({tuple(one[0]) for one in colours}) == 3


def test_values_of_classes_are_those_of_training_pixels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scene,) = lf.check(place / "scene.yaml").scenes
    labels = np.where(np.arange(96)[:, None] < 70, scene.labels, UNLABELLED).astype(np.uint8)
    monkeypatch.setattr("landfuse.figures.overview._PLACES", 400)
    windows = drawn_windows([labels], 4)
    for name in scene.modalities:
        values, classes = drawn_values([scene], [labels], windows, name)
        every = scene.read(name, scene.grid.window)
        for kind in range(4):
            wanted = {tuple(pixel) for pixel in every[:, labels == kind].T.tolist() if np.isfinite(pixel).all()}
            assert {tuple(pixel) for pixel in values[:, classes == kind].T.tolist()} <= wanted
            assert (classes == kind).sum() > 100


def test_tiles_lie_side_by_side() -> None:
    sheet = side_by_side([np.full((20, 10 + n, 3), n, np.uint8) for n in range(5)])
    assert sheet.shape == (41, 44, 3)
    for n, (row, col) in enumerate([(0, 0), (0, 15), (0, 30), (21, 0), (21, 15)]):
        assert (sheet[row : row + 20, col : col + 10 + n] == n).all()
    assert side_by_side([sheet]).shape == sheet.shape


@pytest.mark.parametrize("name", ["seen.png", "seen.html"])
def test_check_writes_a_picture(name: str, place: Path, tmp_path: Path, landfuse: Callable[..., Any]) -> None:
    path = tmp_path / name
    path.write_text("mine")
    words = ("check", place, "--views", "1", "--picture", path)
    code, _, err = landfuse(*words)
    assert (code, path.read_text()) == (2, "mine")
    assert "--overwrite" in err
    code, out, _ = landfuse(*words, "--overwrite")
    assert code == 0
    assert f"picture: {path}" in out
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") if name.endswith("png") else b'src="data:image/png;base64,' in content
    check_picture(path, False)  # over its own
    code, _, err = landfuse(*words[:-1], tmp_path / "x.jpg")
    assert code == 2
    assert ".png or .html" in err


@pytest.mark.parametrize(
    ("wrong", "by", "titles"),
    [
        ("a.tif", "gone.tif", []),
        ("labels.tif", "gone.tif", ["a", "b"]),
        ("size: 8", "size: 200", ["a", "b", "labels", "labelled", "a", "b"]),
    ],
)
def test_pictures_of_broken_scenes(
    wrong: str, by: str, titles: list[str], place: Path, tmp_path: Path, landfuse: Callable[..., Any]
) -> None:
    for file in ("a.tif", "b.tif", "labels.tif"):
        (tmp_path / file).symlink_to(place / file)
    text = (place / "scene.yaml").read_text()
    (tmp_path / "scene.yaml").write_text(text.replace(wrong, by))
    report = lf.check(tmp_path, [(1, 1)])
    assert report.faults
    if titles:
        axes = lf.plot(report)
        assert [re.split(r"\W", axis.get_title())[0] for axis in axes] == titles
        assert "Fault: " in axes[0].figure.words
        return
    with pytest.raises(lf.LandfuseError, match=r"gone\.tif"):
        lf.plot(report)
    code, out, _ = landfuse("check", tmp_path, "--picture", tmp_path / "x.png")
    assert (code, (tmp_path / "x.png").exists()) == (2, False)
    assert "no picture" in out
