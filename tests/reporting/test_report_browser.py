"""The report in a real browser: no error in its console, nothing asked of the network, and every control at work.

Needs Chromium and its driver (`apt-get install chromium chromium-driver` on Debian); skipped where they are not there.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from landfuse.reporting.page import report

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(run, tmp_path_factory.mktemp("pages") / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


class Window:
    """A page that is open at some size."""

    def __init__(self, driver: Any, page: Path, width: int, scheme: str = "light") -> None:
        self.driver = driver
        self.command = driver.execute_cdp_cmd
        self.run = driver.execute_script
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        self.command(
            "Emulation.setEmulatedMedia",
            {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.resolve().as_uri())
        self.until(lambda: self.run("return document.querySelector('#right .layer').naturalWidth") == 48)

    def until(self, true: Callable[[], bool]) -> None:
        """Waits, since pictures are decoded beside the script."""
        for _ in range(100):
            if true():
                return
            time.sleep(0.02)
        raise AssertionError("it did not come true within 2 s")

    def press(self, key: str, on: str = "swipe", shift: bool = False) -> None:
        self.run("document.getElementById(arguments[0]).focus()", on)
        for kind in ("keyDown", "keyUp"):
            words = {"type": kind, "key": key, "code": key, "modifiers": 8 if shift else 0}
            if len(key) == 1:
                words |= {"text": key} if kind == "keyDown" else {}
            self.command("Input.dispatchKeyEvent", words)

    def mouse(self, kind: str, x: float, y: float, held: bool = True) -> None:
        button = {"button": "left", "buttons": 1, "clickCount": 1} if held else {}
        self.command("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **button})

    def box(self, name: str) -> dict[str, float]:
        self.run("document.getElementById(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", name)
        return dict(self.run("return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()", name))

    def clips(self) -> tuple[float, float]:
        """Where the left picture ends and the right one begins, % of the frame."""
        styles = [self.run(f"return document.getElementById('{side}').style.clipPath") for side in ("left", "right")]
        left, right = ([float(part.strip("%px")) for part in style[6:-1].split()] for style in styles)
        return 100 - left[1], right[3]

    def seen(self) -> np.ndarray:
        """What the frame shows, (h, w, 3)."""
        box = self.box("frame")
        clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"], "scale": 1}
        top = self.run("return window.scrollY")
        shot = self.command(
            "Page.captureScreenshot", {"clip": {**clip, "y": box["y"] + top}, "captureBeyondViewport": True}
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")).astype(int)

    def choose(self, side: str, layer: str) -> None:
        self.run("document.querySelector(`input[name=${arguments[0]}][value='${arguments[1]}']`).click()", side, layer)
        self.until(
            lambda: self.run(
                f"const i = document.querySelector('#{side} .layer'); return i.complete && i.naturalWidth > 0"
            )
        )

    def legend(self) -> set[tuple[int, ...]]:
        """The colours of the classes."""
        swatches = self.run(
            "const found = [...document.querySelectorAll('button.class .swatch')];"
            "return found.map((swatch) => getComputedStyle(swatch).backgroundColor)"
        )
        return {tuple(int(n) for n in text[4:-1].split(",")) for text in swatches}

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> list[str]:
        """Addresses that were asked for, but for those of pictures in the page itself."""
        reported = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in reported if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "about:", "chrome:"))]


@pytest.fixture(params=[390, 800, 1400])
def window(request: pytest.FixtureRequest, chromium: Any, page: Path) -> Iterator[Window]:
    opened = Window(chromium, page, request.param)
    yield opened
    assert opened.errors() == []
    assert opened.asked() == [page.resolve().as_uri()]


def test_it_opens_and_fits_the_window(window: Window) -> None:
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert window.run("return document.title").startswith("Three tiles </script>")
    assert window.run("return [...document.images].filter((i) => i.src && i.complete && !i.naturalWidth).length") == 0
    assert window.run("return document.querySelectorAll('script').length") == 2


def test_the_swipe_moves_by_keys_and_the_pixels_with_it(window: Window) -> None:
    assert window.clips() == (50, 50)
    window.choose("right", "modality-dem")
    before = window.seen()
    for key, shift, place in (
        *(("ArrowRight", False, 51), ("ArrowLeft", True, 41), ("PageDown", False, 31), ("End", False, 100)),
        *(("ArrowRight", False, 100), ("Home", False, 0), ("ArrowUp", True, 10)),
    ):
        window.press(key, shift=shift)
        assert window.clips() == (place, place)
        assert window.run("return document.getElementById('swipe').getAttribute('aria-valuenow')") == str(place)
    assert "10% Map, the rest dem" in window.run("return document.getElementById('swipe').ariaValueText")
    after = window.seen()
    width = before.shape[1]
    middle = (slice(before.shape[0] // 3, before.shape[0] // 2), slice(int(0.2 * width), int(0.42 * width)))
    assert (before[middle] != after[middle]).any(axis=-1).mean() > 0.9, "the map gave way to heights"
    still = (middle[0], slice(int(0.6 * width), int(0.9 * width)))
    np.testing.assert_array_equal(before[still], after[still])


def test_the_swipe_moves_by_the_mouse(window: Window) -> None:
    box, handle = window.box("frame"), window.box("swipe")
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    window.mouse("mousePressed", x, y)
    window.mouse("mouseMoved", x + box["width"] * 0.2, y)
    window.mouse("mouseReleased", x + box["width"] * 0.2, y)
    place = window.clips()[0]
    assert place == pytest.approx(70, abs=1)
    window.mouse("mouseMoved", x, y, held=False)
    assert window.clips()[0] == place, "it is let go"


def test_every_layer_is_shown_where_it_is_chosen(window: Window) -> None:
    shots = {}
    window.press("Home")
    for layer in ("map", "labels", "errors", "confidence", "split", "modality-s2", "modality-dem"):
        window.choose("right", layer)
        assert (
            layer.removeprefix("modality-")
            in window.run("return document.getElementById('tag-right').textContent").lower()
        )
        assert window.run("return document.querySelector('#right .layer').alt")
        shots[layer] = window.seen()[60:-60, 60:-10]
    for one in shots:
        for other in shots:
            assert one == other or (shots[one] != shots[other]).any(axis=-1).mean() > 0.05, (one, other)


def test_the_map_s_pixels_have_the_legend_s_colours(window: Window) -> None:
    window.press("End")
    shot = window.seen()
    rows, cols = shot.shape[0] / 48, shot.shape[1] / 48
    known = window.legend()
    inner = [shot[int((r + 0.5) * rows), int((c + 0.5) * cols)] for r in range(12, 36) for c in range(8, 40)]
    assert {tuple(int(n) for n in pixel) for pixel in inner} == known


def test_tiles_zoom_and_single_classes(window: Window) -> None:
    first = window.run("return document.getElementById('tile-words').textContent")
    window.run("document.getElementById('after').click()")
    assert window.run("return document.getElementById('tile').value") == "1"
    assert window.run("return document.getElementById('tile-words').textContent") != first
    names = window.run("return [...document.querySelectorAll('#tile option')].map((o) => o.textContent)")
    assert sorted(names) == ["north", "south", "west"]
    window.run("document.getElementById('before').click(); document.getElementById('before').click()")
    assert window.run("return document.getElementById('tile').value") == "2"
    window.press("+", on="pane")
    window.press("+", on="pane")
    assert window.run("return document.getElementById('zoom').textContent") == "4×"
    assert (
        window.run("return document.getElementById('sheet').offsetWidth / document.getElementById('pane').offsetWidth")
        == 4
    )
    left, right = window.clips()
    assert left == right == pytest.approx(50, abs=0.5)  # in the middle of the sheet, where it was
    window.run("document.getElementById('pane').scrollLeft = 0")
    window.until(lambda: abs(window.clips()[0] - 12.5) < 0.5)
    window.run("document.getElementById('whole').click()")
    window.run("document.querySelectorAll('button.class')[1].click()")
    window.until(lambda: not window.run("return document.querySelector('#left canvas').hidden"))
    alone = window.run(
        "const c = document.querySelector('#left canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const n = {}; for (let i = 0; i < d.length; i += 4) n[d[i + 3]] = (n[d[i + 3]] || 0) + 1; return n"
    )
    assert set(alone) == {"0", "36", "255"}
    pressed = window.run("return [...document.querySelectorAll('button.class')].map((b) => b.ariaPressed)")
    assert pressed == ["false", "true", "false", "false"]
    window.run("document.querySelectorAll('button.class')[1].click()")
    assert window.run("return document.querySelector('#left canvas').hidden")


def test_the_pointer_is_reported_the_class_beneath_it(window: Window, nasty: str) -> None:
    box = window.box("frame")
    window.mouse("mouseMoved", box["x"] + box["width"] * 0.22, box["y"] + box["height"] * 0.3, held=False)
    window.until(lambda: not window.run("return document.getElementById('tip').hidden"))
    said = window.run("return document.getElementById('tip').textContent").split("\n")
    assert [line.split(":")[0] for line in said[:2]] == ["Map", "Labels"]
    assert said[0].removeprefix("Map: ") in {"water", nasty, "trees", "crops"}
    assert said[2] == "row 14, column 10"
    window.mouse("mouseMoved", box["x"] + box["width"] * 0.05, box["y"] + box["height"] * 0.05, held=False)
    window.until(lambda: "Map: none" in window.run("return document.getElementById('tip').textContent"))


def test_what_has_the_focus_shows_it(window: Window) -> None:
    for name in ("swipe", "pane", "in", "tile"):
        plain = window.run("return getComputedStyle(document.getElementById(arguments[0])).outlineStyle", name)
        window.press("Shift", on=name)  # a key makes the focus visible
        shown = window.run(
            "const e = document.getElementById(arguments[0]), s = getComputedStyle(e),"
            "k = getComputedStyle(e.querySelector('.knob') || e); return [s.outlineStyle, k.outlineStyle]",
            name,
        )
        assert document_focus(window) == name
        assert "solid" in shown
        assert plain != "solid"


def document_focus(window: Window) -> str:
    return str(window.run("return document.activeElement.id"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast_whatever_a_cell_holds(chromium: Any, page: Path, scheme: str) -> None:
    window = Window(chromium, page, 1400, scheme)
    heated = window.run(
        "const cells = [...document.querySelectorAll('.matrix td[style]:has(small)')];"
        "cells.forEach((c, i) => c.style.setProperty('--s', i / (cells.length - 1))); return cells.length"
    )
    assert heated >= 8
    found = window.run(
        """
        const parts = (text) => text.match(/[\\d.]+/g).map(Number);
        const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = (c) => c.slice(0, 3).map((v) => linear(v / 255)).reduce(
          (sum, v, i) => sum + v * [.2126, .7152, .0722][i], .05);
        const ground = (element) => {
          const own = parts(getComputedStyle(element).backgroundColor), alpha = own[3] ?? 1;
          if (alpha === 1) return own;
          const under = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
          return own.slice(0, 3).map((v, i) => v * alpha + under[i] * (1 - alpha));
        };
        const poor = [];
        for (const element of document.querySelectorAll("main *, header *, footer *")) {
          const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
          if (!text || !element.checkVisibility() || element.closest("#frame, svg, optgroup")) continue;
          const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
          if (a / b < 4.5) poor.push([element.outerHTML.slice(0, 90), a / b]);
        }
        return poor;"""
    )
    assert found == []


def test_ground_without_a_label_looks_like_no_class(window: Window) -> None:
    window.choose("left", "labels")
    window.press("End")
    shot = window.seen()
    row = shot.shape[0] / 48
    strip = shot[int(30.5 * row) : int(33.5 * row), shot.shape[1] // 3 : shot.shape[1] // 2]
    assert np.ptp(strip.sum(axis=-1)) > 200, "dark and light lines"
    known = np.array(sorted(window.legend()))
    same = (strip[:, :, None] == known).all(axis=-1).any(axis=-1)
    assert same.mean() < 0.05


def test_two_fingers_zoom_where_they_are_and_one_moves_the_map(window: Window) -> None:
    window.run("document.getElementById('frame').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = window.run("return document.getElementById('pane').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25

    def touch(kind: str, *points: tuple[float, float]) -> None:
        window.command("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})

    window.command("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:
        touch("touchStart", (x - 20, y), (x + 20, y))
        touch("touchMove", (x - 40, y), (x + 40, y))
        touch("touchMove", (x - 60, y), (x + 60, y))
        touch("touchEnd")
        assert window.run("return document.getElementById('zoom').textContent") == "3×"
        spot = "const p = document.getElementById('pane'), s = document.getElementById('sheet');"
        middle = window.run(f"{spot} return (p.scrollLeft + p.clientWidth / 4) / s.offsetWidth")
        assert middle == pytest.approx(0.25, abs=0.02), "what is between the fingers stays there"
        before = window.run("return document.getElementById('pane').scrollLeft")
        touch("touchStart", (x + 60, y))
        for step in range(1, 8):
            touch("touchMove", (x + 60 - 12 * step, y))
        touch("touchEnd")
        window.until(lambda: window.run("return document.getElementById('pane').scrollLeft") > before + 30)
    finally:
        window.command("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_wide_matrix_scrolls_in_itself_and_its_names_stay(chromium: Any, page: Path, tmp_path: Path) -> None:
    """25 classes with long names at 390 px."""
    window = Window(chromium, page, 390)
    window.run(
        """
        const table = document.querySelector(".matrix"), name = "Donaudampfschifffahrtsgesellschaftswiese and others";
        table.classList.add("many", "very-many");
        table.style.setProperty("--fit", 24 / 25);
        for (const row of table.rows) {
          for (const cell of row.querySelectorAll(".name, thead span")) cell.textContent = name;
          for (let i = 0; i < 20; i++) row.append(row.cells[2].cloneNode(true));
        }
        for (let i = 0; i < 21; i++) table.tBodies[0].append(table.tBodies[0].rows[0].cloneNode(true));
        const box = table.parentElement;
        box.scrollIntoView({block: "start", behavior: "instant"});
        box.scrollTo(400, 300);"""
    )
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    box, corner, first, head = window.run(
        "const t = document.querySelector('.matrix'), b = t.parentElement.getBoundingClientRect();"
        "const at = [t.tHead.rows[0].cells[0], t.tBodies[0].rows[9].cells[0], t.tHead.rows[0].cells[12]];"
        "return [b, ...at.map((c) => c.getBoundingClientRect())].map((r) => r.toJSON())"
    )
    assert (corner["left"], first["left"]) == pytest.approx((box["left"], box["left"]), abs=1)
    assert (corner["top"], head["top"]) == pytest.approx((box["top"], box["top"]), abs=1)
    assert first["width"] < 160, "the name wraps"
    assert head["height"] < 200
    window.command("Emulation.setEmulatedMedia", {"media": "print"})
    window.command(
        "Emulation.setDeviceMetricsOverride", {"width": 695, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    assert window.run("return document.querySelector('.matrix').getBoundingClientRect().right") <= 695, "A4"
    assert window.errors() == []


def test_a_press_on_a_tile_shows_it(window: Window) -> None:
    window.run("document.querySelectorAll('.mosaic .to-tile')[2].click()")
    assert window.run("return document.getElementById('tile').selectedOptions[0].textContent") == "west"
    pressed = window.run(
        "return [...document.querySelectorAll('.to-tile')].filter((b) => b.ariaPressed === 'true').length"
    )
    assert pressed == 2  # in the overview and in the list


def test_dark_is_dark_and_paper_is_white(chromium: Any, page: Path) -> None:
    def ground(opened: Window) -> int:
        return sum(
            int(n) for n in opened.run("return getComputedStyle(document.body).backgroundColor")[4:-1].split(",")[:3]
        )

    light, dark = (ground(Window(chromium, page, 900, scheme)) for scheme in ("light", "dark"))
    assert light > 700
    assert dark < 100
    window = Window(chromium, page, 900, "dark")
    window.command(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    rows = window.run(
        "const body = document.querySelector('.ranking').tBodies[0];"
        "while (body.rows.length < 40) body.append(body.rows[0].cloneNode(true));"
        "return [...body.rows].filter((row) => getComputedStyle(row).display !== 'none').length"
    )
    assert rows == 30, "paper lists the worst tiles"
    look = window.run(
        "const seen = (s) => getComputedStyle(document.querySelector(s)).display;"
        "const shown = ['.viewer', '.controls', 'nav', '.gallery'].map(seen);"
        "return [...shown, getComputedStyle(document.body).color]"
    )
    assert look[:4] == ["none", "none", "none", "grid"]
    assert look[4] == "rgb(26, 31, 36)"
    printed = base64.b64decode(window.command("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") < 14
    assert window.errors() == []
