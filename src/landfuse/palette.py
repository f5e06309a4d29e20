"""Colours of classes: by their names where known, else from a fixed table; and which are hard to distinguish."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#505050",
    "#BBDDAA", "#552200", "#8877FF", "#440088", "#BB2211", "#223344", "#CCAAAA", "#335577",
    "#885544", "#AADDFF", "#11FF22", "#0000FF", "#FF00EE", "#FF0099", "#22AA00", "#004411",
    "#00EEEE", "#00FFBB", "#BBFF00", "#FF8877", "#FF88FF", "#BBFF88", "#779933", "#FFCC88",
    "#886600", "#9933EE", "#440022", "#BBAAFF", "#002266", "#AA1155", "#AA1199", "#FF0055",
)  # fmt: skip
"""Colours of classes that name none. Any two are at least 17 apart in CIELAB, and none is near white. The first 18,
which begin with those of Okabe and Ito (2008), are at least 15 apart with protanopia, deuteranopia and tritanopia too.
"""

NAMED = {
    "#3075D1": "water, water bodies, permanent water bodies, open water, inland water, river, lake, pond, canal, agua, "
    "rio, lago, acqua, fiume, eau, plan d'eau, fleuve, riviere, wasser, gewaesser, gewässer, fluss, see, rzeka, woda, "
    "вода, 水, 水体, 河流, 湖泊",
    "#123F85": "sea, ocean, sea and ocean, meer, ozean, mer, mar, oceano, zee, morze, море, 海洋",
    "#51B6A1": "wetland, flooded vegetation, marsh, marshes, inland marshes, swamp, bog, peat bogs, peatland, "
    "feuchtgebiet, moor, sumpf, zone humide, marais, tourbiere, humedal, area umida, palude, moeras, 湿地, 沼泽",
    "#008D6C": "mangrove, manglar, 红树林",
    "#2D701F": "forest, tree, tree cover, woodland, mixed forest, high vegetation, wald, mischwald, baum, foret, bois, "
    "arbre, bosque, arbol, bosco, foresta, albero, floresta, arvore, bos, лес, 森林, 林地, 树木",
    "#58B04C": "deciduous, deciduous forest, broadleaf, broadleaved forest, broad leaved forest, laubwald, feuillus, "
    "foret de feuillus, frondosas, latifoglie, loofbos, лиственный лес, 阔叶林",
    "#0B4D3C": "conifer, coniferous, coniferous forest, evergreen forest, needleleaf, pine, spruce, nadelwald, kiefer, "
    "fichte, resineux, coniferas, pinar, naaldbos, хвойный лес, 针叶林",
    "#857E15": "shrub, shrubland, scrub, bush, bushes, heath, heathland, strauch, gebuesch, gebüsch, heide, lande, "
    "gehoelz, gehölz, garrigue, matorral, arbusto, кустарник, 灌木, 灌木林",
    "#A8D658": "grass, grassland, low vegetation, herbaceous, rangeland, savanna, lawn, gras, gruenland, grünland, "
    "rasen, wiese, prairie, pelouse, pastizal, prato, трава, луг, 草地, 草原",
    "#D9F09B": "pasture, meadow, weide, paturage, pasto, dehesa, pascolo, pastagem, weiland, 牧场",
    "#E39E22": "crop, cropland, farmland, agriculture, arable land, non-irrigated arable land, cultivated land, acker, "
    "ackerland, culture, cultivo, coltura, seminativo, lavoura, akkerland, пашня, 耕地, 农田",
    "#F2E07B": "wheat, cereal, barley, weizen, getreide, gerste, ble, orge, trigo, cebada, frumento, tarwe, пшеница, "
    "小麦",
    "#F58B2A": "maize, corn, mais, maiz, milho, kukurydza, кукуруза, 玉米",
    "#FFE600": "rapeseed, canola, raps, colza, koolzaad, rzepak, 油菜",
    "#77C9A0": "rice, paddy, paddy field, reis, riz, arroz, riso, rijst, рис, 水稻, 水田",
    "#99AD45": "soybean, soy, soya, soja, 大豆",
    "#86305F": "vineyard, weinberg, rebe, vigne, vignoble, viñedo, vigneto, vinha, wijngaard, 葡萄园",
    "#CF7A4E": "orchard, fruit tree, olive, olive grove, obstbau, verger, olivar, frutteto, oliveto, pomar, 果园",
    "#A8484E": "built, built up, built area, building, urban, settlement, city, house, roof, artificial surface, "
    "gebaeude, gebäude, siedlung, bebauung, batiment, bâti, zone urbaine, edificio, urbano, edificato, edificação, "
    "gebouw, bebouwing, budynek, zabudowa, здание, застройка, 建筑, 建筑物, 建设用地",
    "#DB8F92": "residential, residential area, wohngebiet, residentiel, residencial, residenziale, 住宅",
    "#86508F": "industrial, commercial, industrial area, industry, industrie, gewerbe, industria, 工业, 商业",
    "#494A5A": "road, highway, street, asphalt, impervious surface, pavement, strasse, versiegelt, route, carretera, "
    "verkehr, calle, strada, estrada, rua, weg, droga, дорога, 道路, 公路",
    "#8B7AA0": "railway, rail, train, gleis, bahn, voie ferree, ferrocarril, ferrovia, spoorweg, 铁路",
    "#9BA3B0": "parking, parking lot, parkplatz, stationnement, aparcamiento, parcheggio, 停车场",
    "#F1437A": "car, vehicle, fahrzeug, auto, voiture, coche, veicolo, carro, 汽车",
    "#BC8F5C": "bare, bare soil, soil, barren, bare land, ground, boden, brache, sol, sol nu, suelo, suolo, solo, "
    "bodem, почва, 裸地, 裸土",
    "#857C70": "rock, bare rock, stone, gravel, fels, kies, roche, rocher, roca, roccia, rocha, rots, skala, 岩石",
    "#EBCD94": "sand, beach, beaches, dune, beaches dunes sands, desert, strand, duene, düne, sable, plage, arena, "
    "playa, sabbia, spiaggia, areia, praia, zand, piasek, песок, 沙地, 沙漠",
    "#6B4535": "mine, mineral extraction site, quarry, landfill, tagebau, steinbruch, carriere, cantera, cava, 矿山",
    "#A9DDF0": "snow, ice, snow and ice, glacier, schnee, eis, gletscher, neige, nieve, hielo, neve, ghiaccio, sneeuw, "
    "снег, 冰雪",
    "#CFC8DC": "cloud, wolke, nuage, nube, nuvola, nuvem, wolk, облако, 云",
    "#1D1D36": "shadow, shade, schatten, ombre, sombra, ombra, schaduw, тень, 阴影",
    "#42160E": "burnt, burned, burnt area, burned area, fire, verbrannt, brule, quemado, bruciato, 火烧迹地",
    "#B1B48B": "moss, lichen, tundra, sparse vegetation, sparsely vegetated areas, moos, flechte, musgo, тундра, 苔原",
}
"""Colour -> the names of classes that people expect in it, in several languages; case, accents and an s at the end of
words do not matter. Any two colours are at least 12 apart in CIELAB and none is near white; those of the commonest
classes are so with protanopia, deuteranopia and tritanopia too.
"""

_DENIED = {"non", "no", "not", "nicht", "kein", "sin", "san", "ohne", "without", "senza", "sem", "bez"}
"""With one of these words, or "sans", a name is known as a whole only: `non-forest` is not green."""

COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")

VISIONS = ("full colour vision", "protanopia", "deuteranopia", "tritanopia")

TOO_CLOSE = 12.0
"""Colours nearer than this in CIELAB are hard to match to a legend: about five times the 2.3 that can just be seen
where two patches touch (Mahy et al. 1994, Color Research and Application 19), since on a map they are far apart."""

# Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113: severity 1, on linear RGB.
_SEEN = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}

_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
_WHITE = _XYZ.sum(axis=1)


@dataclass(frozen=True)
class ClosePair:
    """Two colours that are hard to distinguish: their places, the vision in which they are nearest, and how near."""

    first: int
    second: int
    vision: str
    distance: float


def rgb(colour: str) -> tuple[int, int, int]:
    """Converts a colour, `#RRGGBB`, to three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def seen(rgb: ArrayLike, vision: str) -> NDArray[np.float64]:
    """Colours as someone with this vision sees them: (..., 3) sRGB 0..255 -> linear RGB 0..1.

    Source: Machado et al. 2009, doi:10.1109/TVCG.2009.113, equation 9.
    """
    srgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    if vision in _SEEN:
        linear = linear @ np.array(_SEEN[vision]).T
    return np.clip(linear, 0, 1)


def lab(linear: ArrayLike) -> NDArray[np.float64]:
    """Linear RGB as CIELAB (L 0..100, a, b), the white of sRGB as white: (..., 3) -> (..., 3).

    Source: CIE 15:2004, section 8.2.1.
    """
    xyz = np.asarray(linear, np.float64) @ _XYZ.T / _WHITE
    edge = 6 / 29
    f = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distances(colours: Sequence[tuple[int, int, int]], vision: str) -> NDArray[np.float64]:
    """Distances of sRGB colours, 0..255, from each other in CIELAB, as seen in a vision: (K, K)."""
    places = lab(seen(np.array(colours, np.float64).reshape(-1, 3), vision))
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def close_pairs(colours: Sequence[tuple[int, int, int]], limit: float = TOO_CLOSE) -> list[ClosePair]:
    """The pairs of sRGB colours, 0..255, that come nearer than `limit` in some vision, the nearest first."""
    tables = {vision: distances(colours, vision) for vision in VISIONS}
    pairs = []
    for i, j in combinations(range(len(colours)), 2):
        vision = min(VISIONS, key=lambda name: tables[name][i, j])
        pairs.append(ClosePair(i, j, vision, float(tables[vision][i, j])))
    return sorted((pair for pair in pairs if pair.distance < limit), key=lambda pair: pair.distance)


def _plain(name: str) -> str:
    """A name without case, accents, digits, punctuation and the s at the end of words: `Forêts (2)` -> `foret`."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    return " ".join(word.rstrip("s") for word in re.findall(r"[^\W\d_]+", letters))


@cache
def _by_name() -> dict[str, str]:
    return {_plain(name): colour for colour, names in NAMED.items() for name in names.split(", ")}


def _known(name: str) -> str | None:
    """The colour that people expect: of the whole name, else of its last word, its first, or the end of a compound."""
    plain = _plain(name)
    words = plain.split() or [""]
    tried = [plain] if _DENIED & set(words) else [plain, words[-1], words[0]]
    if len(tried) > 1 and not words[-1].startswith((*_DENIED, "un")):
        last = re.sub(r"s?flachen?$", "", words[-1])  # "Wasserfläche"
        ends = (word for word in _by_name() if last.endswith(word) and (len(word) > 4 or word == "wald"))
        tried += sorted(ends, key=len, reverse=True)  # "Offenboden"
    return next((_by_name()[word] for word in tried if word in _by_name()), None)


@cache
def class_colours(names: tuple[str, ...], given: tuple[str | None, ...] = ()) -> tuple[str, ...]:
    """The colour of each class of a legend: the given one, else the one expected of its name, else of `PALETTE`.

    A second class of one kind takes a darker or paler shade. No two of up to 40 classes get the same colour.

    Args:
        given: `#RRGGBB` or None for each of them; none is given if left out.
    """
    known = [_known(name) for name in names]
    chosen = list(given or [None] * len(names))
    for index in sorted(range(len(names)), key=lambda i: known[i] is None):  # the known ones choose first
        if chosen[index] is None:
            colour = known[index]
            shades = [colour, _mixed(colour, 0, 0.4), _mixed(colour, 255, 0.45)] if colour else []
            candidates = [*shades, *PALETTE]
            tried, used = ([rgb(c) for c in some if c and COLOUR.fullmatch(c)] for some in (candidates, chosen))
            gaps = distances([*tried, *used], VISIONS[0])[: len(tried), len(tried) :].min(axis=1, initial=np.inf)
            best = int((gaps >= TOO_CLOSE).argmax() if gaps.max() >= TOO_CLOSE else gaps.argmax())
            chosen[index] = candidates[best] if gaps[best] else PALETTE[index % len(PALETTE)]
    return tuple(colour for colour in chosen if colour)


def _mixed(colour: str, grey: int, part: float) -> str:
    return "#" + "".join(f"{round(value + part * (grey - value)):02X}" for value in rgb(colour))
