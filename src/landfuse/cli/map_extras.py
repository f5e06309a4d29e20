"""What `predict` writes beside finished maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from landfuse.cli.console import Events
from landfuse.errors import SceneError, SettingsError
from landfuse.progress import bar

if TYPE_CHECKING:
    from landfuse.bundles.predictor import Predictor
    from landfuse.legend import Legend
    from landfuse.mapping.map_layers import Layer
    from landfuse.scenes.scene import Scene


@dataclass(frozen=True)
class MapExtras:
    """The files beside maps that were asked for; their style is always written."""

    picture: bool
    polygons: bool
    minimum_area: float | None
    stac: bool
    taken: datetime | None
    events: Events

    @property
    def takes_time(self) -> bool:
        """Whether an interruption may fall between a map and what is beside it."""
        return self.polygons or self.stac

    def check(self, tiles: Iterable[Scene]) -> None:
        """Refuses, before anything is mapped, what cannot be written.

        Raises:
            SettingsError: if options do not go together.
            SceneError: if a tile is too large for polygons, or cannot be placed on the globe.
            MissingExtraError: if what writes items is not installed.
        """
        from landfuse.mapping.map_extras import check_polygons
        from landfuse.mapping.stac import check_item

        for wrong, option, needed in (
            (self.minimum_area is not None and not self.polygons, "--minimum-area", "--polygons"),
            (self.taken is not None and not self.stac, "--taken", "--stac"),
        ):
            if wrong:
                raise SettingsError(f"{option} is given without {needed}", f"{needed} {option}", f"add {needed}")
        for one in tiles:
            if self.polygons:
                check_polygons(one.grid, self.minimum_area or 0.0)
            if self.stac:
                check_item(one.grid)

    def write(
        self, maps: Mapping[Path, Scene], predictor: Predictor, bundle: Path, layers: Sequence[Layer],
        incomplete: Iterable[str],
    ) -> list[SceneError]:  # fmt: skip
        """Writes styles of all maps, and polygons and items of those that lack no block.

        Returns:
            Why polygons cannot be written: where nothing is mapped, or there are too many. Of several tiles some may
            hold no data: that is printed, and is no fault unless all of them hold none.
        """
        from landfuse.mapping.map_extras import sizes_legend, write_polygons, write_style
        from landfuse.mapping.stac import write_item

        legend, lacking = predictor.description.legend, set(incomplete)
        whole = {path: tile for path, tile in maps.items() if tile.name not in lacking}
        faults: list[SceneError] = []
        for path in maps:
            write_style(path, legend)
            for one in _sets_beside(path, layers):
                write_style(one, sizes_legend(len(legend)))
        if self.polygons:
            with bar("polygons", self.events.quiet or self.events.as_json) as progress:
                for done, (path, tile) in enumerate(whole.items()):
                    progress(done, len(whole))
                    try:
                        made = write_polygons(path, legend, self.minimum_area or 0.0)
                    except SceneError as error:
                        faults.append(error)
                    else:
                        self.events.wrote("polygons", made, tile=tile.name)
        if self.stac:
            for path, tile in whole.items():
                made = write_item(path, tile.grid, predictor, bundle, layers, self.taken)
                self.events.wrote("stac", made, tile=tile.name)
        if len(faults) == len(whole):
            return faults
        for fault in faults:
            self.events.print("note", fault.found, found=fault.found)
        return []

    def outputs(self, path: Path, layers: Sequence[Layer]) -> list[tuple[Path, str]]:
        """The files beside a map that will be written, with the signs of landfuse's own."""
        from landfuse.mapping.map_extras import SIGNS, polygons_beside

        wanted = {".qml": True, ".png": self.picture, ".stac.json": self.stac}
        found = [(path.with_suffix(ending), SIGNS[ending]) for ending, one in wanted.items() if one]
        found += [(one.with_suffix(".qml"), SIGNS[".qml"]) for one in _sets_beside(path, layers)]
        return found + ([(polygons_beside(path), SIGNS["_polygons.gpkg"])] if self.polygons else [])

    def overview(self, folder: Path, maps: Mapping[Path, Scene]) -> list[tuple[Path, str]]:
        """The files that show all maps of a folder, with the signs of landfuse's own."""
        from landfuse.mapping.map_extras import SIGNS, mosaics

        found = mosaics(folder, {one.name: (one.grid, path) for path, one in maps.items()})
        files = [*found, *(path.with_suffix(".qml") for path in found)]
        return [(path, SIGNS[path.suffix]) for path in files] + [(folder / "index.gpkg", SIGNS["index.gpkg"])]

    def write_overview(self, tiles: Mapping[Path, Scene], folder: Path, legend: Legend) -> None:
        """Writes mosaics and the index of all maps of a scene that are in a folder.

        Raises:
            GridError: if a tile cannot be placed.
            OutputError: if they cannot be written.
        """
        from landfuse.mapping.map_extras import index_maps, write_mosaics

        maps = {tile.name: (tile.grid, path) for path, tile in tiles.items()}
        for made in write_mosaics(folder, maps, legend):
            self.events.wrote("mosaic", made)
        index = index_maps(folder, maps)
        if index is not None:
            self.events.wrote("index", index)


def _sets_beside(path: Path, layers: Sequence[Layer]) -> list[Path]:
    """The file of a map's class sets, if it has them."""
    from landfuse.scenes.land_cover_map import beside

    return [beside(path, layer.name) for layer in layers if layer.name == "sets"]
