"""What `predict` writes beside finished maps, and how it tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from landfuse.cli.console import bar, print_json, say

if TYPE_CHECKING:
    from landfuse.bundles.predictor import Predictor
    from landfuse.errors import SceneError
    from landfuse.legend import Legend
    from landfuse.mapping.map_layers import Layer
    from landfuse.scenes.scene import Scene


@dataclass(frozen=True)
class BesideMaps:
    """What is wanted beside maps; their style always is.

    Args:
        polygons: as a GeoPackage.
        minimum_area: of a polygon; None for any.
        stac: an item.
        taken: when the scene was.
        as_json: tell in lines of JSON.
        quiet: no progress bar.
    """

    polygons: bool
    minimum_area: float | None
    stac: bool
    taken: datetime | None
    as_json: bool
    quiet: bool

    @property
    def takes_time(self) -> bool:
        """Whether an interruption may fall between a map and what is beside it."""
        return self.polygons or self.stac

    def check(self, tiles: Iterable[Scene]) -> None:
        """Refuses, before anything is mapped, what cannot be written.

        Raises:
            SettingsError: if options do not go together.
            SceneError: if a tile is too large for polygons, or cannot be placed on the globe.
        """
        from landfuse.errors import SettingsError
        from landfuse.mapping.map_extras import check_polygons
        from landfuse.rasters.vector_map import footprint

        for given, option, needed in (
            (self.minimum_area is not None and not self.polygons, "--minimum-area", "--polygons"),
            (self.taken is not None and not self.stac, "--taken", "--stac"),
        ):
            if given:
                raise SettingsError(f"{option} is given without {needed}", f"{needed} {option}", f"add {needed}")
        for one in tiles:
            if self.polygons:
                check_polygons(one.grid, self.minimum_area or 0.0)
            if self.stac:
                footprint(one.grid)

    def write(
        self,
        tiles: Sequence[Scene],
        paths: Mapping[str, Path],
        predictor: Predictor,
        bundle: Path,
        layers: Sequence[Layer],
        incomplete: Iterable[str],
    ) -> list[SceneError]:
        """Writes styles, and polygons and items of the maps that lack nothing; tells of each.

        Returns:
            Why some polygons cannot be: where nothing is mapped, or there are too many. Of several tiles some may hold
            no data: that is said, and is no fault unless all of them hold none.
        """
        from landfuse.errors import SceneError
        from landfuse.mapping.map_extras import write_polygons, write_style
        from landfuse.mapping.stac import write_item

        lacking = set(incomplete)
        whole = [one for one in tiles if one.name not in lacking]
        faults: list[SceneError] = []
        for one in tiles:
            write_style(paths[one.name], predictor.description.legend)
        if self.polygons:
            with bar("polygons", self.quiet or self.as_json) as tell:
                for number, one in enumerate(whole):
                    tell(number, len(whole))
                    try:
                        made = write_polygons(paths[one.name], predictor.description.legend, self.minimum_area or 0.0)
                    except SceneError as error:
                        faults.append(error)
                    else:
                        self._tell("polygons", made, one.name)
        if self.stac:
            for one in whole:
                made = write_item(paths[one.name], one.grid, predictor, bundle, layers, self.taken)
                self._tell("stac", made, one.name)
        if faults and len(faults) < len(whole):
            for fault in faults:
                self._note(fault.found)
            return []
        return faults

    def write_overview(self, tiles: Iterable[Scene], folder: Path, legend: Legend) -> None:
        """Writes mosaics and the index of all of a scene's maps that lie in a folder.

        Raises:
            GridError: if a tile cannot be placed.
            OutputError: if they cannot be written.
        """
        from landfuse.mapping.map_extras import index_maps, write_mosaics

        maps = {one.name: (one.grid, folder / f"{one.name}.tif") for one in tiles}
        maps = {tile: (grid, path) for tile, (grid, path) in maps.items() if path.exists()}
        for made in write_mosaics(folder, maps, legend):
            self._tell("mosaic", made)
        index = index_maps(folder, maps)
        if index is not None:
            self._tell("index", index)

    def _tell(self, what: str, made: Path, tile: str | None = None) -> None:
        if self.as_json:
            print_json(what, path=str(made), **({} if tile is None else {"tile": tile}))
        else:
            say(f"{what}: {made}")

    def _note(self, words: str) -> None:
        if self.as_json:
            print_json("note", found=words)
        else:
            say(words)
