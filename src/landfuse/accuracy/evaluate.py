"""Scoring maps against labels: confusion, 95% intervals from blocks of ground, and whether two maps differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.bootstrap import SCORES, BlockIntervals, block_confusions, block_intervals, difference_intervals
from landfuse.accuracy.confusion import Confusion
from landfuse.errors import LandfuseError, MissingFileError, SceneError, SettingsError, SplitError
from landfuse.files import to_json, write_results
from landfuse.legend import UNLABELLED, Legend
from landfuse.rasters.geotiff import GdalRaster
from landfuse.scenes.land_cover_map import open_map
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import SceneFile, read_mask, read_scene_file
from landfuse.scenes.split_rules import ROLES, Roles
from landfuse.scenes.splits import ALL_LABELS, all_train, roles_digest

_DIGEST = 64
"""Characters, at least, of what a map says of the roles of a tile that its model was trained on."""


class Tally:
    """Truth against one map, counted part by part; whatever landfuse scores goes through `add`.

    Args:
        block: side of the blocks of ground that intervals come from, px; None to count no blocks.

    Raises:
        SettingsError: if a block has no pixel.
    """

    def __init__(self, legend: Legend, block: int | None = None) -> None:
        if block is not None and block < 1:
            raise SettingsError(f"blocks of {block} px", "a side of at least 1 px", "change --block")
        self.legend, self.block = legend, block
        self.confusion = Confusion.of(legend)
        self._blocks = [np.zeros((0, len(legend), len(legend)), np.int64)]

    def add(self, truth: NDArray[np.uint8], mapped: NDArray[np.uint8]) -> Confusion:
        """Counts a part, a whole tile where blocks are counted, and returns its own confusion.

        Both arrays are (H, W) uint8, 0..K-1 or `UNLABELLED`.
        """
        own = Confusion.of(self.legend)
        own.update(truth, mapped)
        self.confusion += own
        if self.block is not None:
            self._blocks.append(block_confusions(truth, mapped, self.block, len(self.legend)))
        return own

    def score(self, parts: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Confusion:
        """Counts all parts, each (truth, mapped), and returns the confusion of everything counted so far."""
        for truth, mapped in parts:
            self.add(truth, mapped)
        return self.confusion

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Confusions of the blocks with scored pixels: (B, K, K)."""
        return np.concatenate(self._blocks)

    def intervals(self, replicates: int = 2000, seed: int = 0) -> BlockIntervals:
        """The scores with 95% intervals; see `block_intervals`."""
        return block_intervals(self.blocks, replicates, seed, self.legend.scored)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A scored map, and perhaps its comparison with another one.

    Args:
        tally: of the map.
        role: the labels that were scored.
        pair: of the map and of the other one, both on the pixels that have a class in both.
        left_out: labelled pixels that have a class in one of the two maps only.
        notes: whose pixels these are: of training, or never seen by the model.
    """

    tally: Tally
    role: str
    pair: tuple[Tally, Tally] | None = None
    left_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def confusion(self) -> Confusion:
        """The confusion matrix over the legend."""
        return self.tally.confusion

    @property
    def legend(self) -> Legend:
        """The classes."""
        return self.tally.legend

    def intervals(self, replicates: int = 2000, seed: int = 0) -> BlockIntervals:
        """The scores with 95% intervals, from blocks of ground that are drawn with replacement.

        Raises:
            SplitError: if all scored pixels are in one block.
        """
        _refuse_nothing(self.tally, self.role)
        return self.tally.intervals(replicates, seed)

    def differences(self, replicates: int = 2000, seed: int = 0) -> BlockIntervals:
        """The scores of the map less those of the other one, with 95% intervals on the same draws.

        Raises:
            SplitError: if all scored pixels are in one block.
            ValueError: if there is no other map.
        """
        if self.pair is None:
            raise ValueError("the map was evaluated without another one (`against`)")
        first, second = self.pair
        _refuse_nothing(first, self.role)
        return difference_intervals(first.blocks, second.blocks, replicates, seed, self.legend.scored)

    def save(
        self,
        folder: str | Path,
        intervals: BlockIntervals | None = None,
        differences: BlockIntervals | None = None,
        *,
        overwrite: bool = False,
    ) -> list[Path]:
        """Writes `scores.json` and `confusion.csv`, and `intervals.json` and `comparison.json` where these are given.

        Returns:
            The files.

        Raises:
            OutputError: if a file of another kind is in the way and `overwrite` is not set, or one cannot be written.
        """
        scores = self.confusion.to_json(self.legend)
        texts = {
            "scores.json": to_json({"role": self.role, "notes": self.notes, **json.loads(scores)}),
            "confusion.csv": self.confusion.to_csv(self.legend),
        }
        names, block = self.legend.names, self.tally.block or 0
        if intervals is not None:
            texts["intervals.json"] = to_json({"role": self.role, **intervals.to_dict(names, block)})
        if differences is not None and self.pair is not None:
            first, second = ({name: one.confusion.scores()[name] for name in SCORES} for one in self.pair)
            values = differences.to_dict(names, block)
            parts = {"first": first, "second": second, "first less second": values, "left out": self.left_out}
            texts["comparison.json"] = to_json({"role": self.role, **parts})
        files = {Path(folder) / name: text for name, text in texts.items()}
        write_results(files, overwrite)
        return list(files)


def map_of(maps: str | Path, scene: Scene, tiles: int) -> Path:
    """The file of a tile's map: the path itself, or `TILE.tif` in it where the scene has several.

    Raises:
        MissingFileError: if it is not there.
        SceneError: if one map is named for several tiles.
    """
    path = _place(maps, scene, tiles)
    if not path.exists():
        raise MissingFileError(
            f"there is no map {path}",
            f"a map per tile, as `landfuse predict` writes them; the scene has {tiles}",
            "map it",
        )
    return path


def _place(maps: str | Path, scene: Scene, tiles: int) -> Path:
    maps = Path(maps)
    if tiles > 1 and maps.is_file():
        raise SceneError(
            f"{maps} is one map, and the scene has {tiles} tiles",
            "the folder of the tiles' maps, as `landfuse predict` writes it",
            "name that folder, or the scene that was mapped",
        )
    return maps / f"{scene.name}.tif" if tiles > 1 or maps.is_dir() else maps


def evaluate(
    maps: str | Path,
    scene_file: str | Path,
    *,
    role: str | None = None,
    split: str | Path | None = None,
    block: int = 64,
    against: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores the map of a scene file against its labels; every map is read once.

    Args:
        maps: the map, or the folder of the tiles' maps.
        scene_file: the scene file, with labels.
        role: `train`, `validation`, `test`, or `all` labelled pixels; by default `test` where there is a split.
        split: a written split instead of the scene file's: a raster of roles, or a folder with one per tile, as a
            run folder holds it.
        block: side of the blocks of ground for intervals, px; larger than the distance over which errors are
            correlated. No block spans two tiles.
        against: another map of the scene, or the folder of its tiles' maps.
        progress: called with (tiles done, tiles in all).

    Raises:
        SceneError: if the scene has no labels.
        GridError: if a map's grid is not its scene's.
        SplitError: if no pixel has the role.
        SettingsError: if a block has no pixel.

    Examples:
        >>> result = lf.evaluate("map.tif", "scene.yaml")
        >>> sorted(result.confusion.scores())[:3]
        ['AA', 'OA', 'kappa']
    """
    file = read_scene_file(scene_file)
    scenes = file.scenes()
    tags = _tags(maps, scenes)
    run = None if split is not None or role == "all" else _run_split(tags, scenes, (maps, file.path.parent, "."))
    refuse_learnt(maps, tags, scenes, run)
    chosen = _role_of(file, role, split or run)
    roles, notes = _roles_of(file, scenes, chosen, split, run, tags)
    other = tags if against is None else _tags(against, scenes)
    if against is not None:
        refuse_learnt(against, other, scenes, None)
    if other != tags:
        notes.append("the other map is of a model with other training pixels, which may be among those compared")
    tally = Tally(file.legend, block)
    pair = None if against is None else (Tally(file.legend, block), Tally(file.legend, block))
    left_out = 0
    for truth, (mapped, *others) in _scored_tiles(
        [maps] if against is None else [maps, against], scenes, chosen, roles, progress
    ):
        tally.add(truth, mapped)
        if pair is not None:
            in_one = (mapped != UNLABELLED) ^ (others[0] != UNLABELLED)
            left_out += int(((truth != UNLABELLED) & in_one).sum())
            common = np.where(in_one, UNLABELLED, truth).astype(np.uint8)
            pair[0].add(common, mapped)
            pair[1].add(common, others[0])
    if not tally.confusion.pixels and not tally.confusion.unmapped:
        raise SplitError(
            f"no labelled pixel has the role `{chosen}`", "labelled pixels", "choose another role or split"
        )
    return Evaluation(tally, chosen, pair, left_out, tuple(notes))


def _tags(maps: str | Path, scenes: Sequence[Scene]) -> dict[str, str | None]:
    """Tile -> what its map says of the roles that its model was trained with; None where it says nothing."""
    places = {scene.name: _place(maps, scene, len(scenes)) for scene in scenes}
    return {name: GdalRaster(str(path)).tags.get("landfuse_roles") for name, path in places.items() if path.exists()}


def refuse_learnt(maps: str | Path, tags: Mapping[str, str | None], scenes: Sequence[Scene], run: Path | None) -> None:
    """Refuses a map whose model learnt from every label of the scenes.

    Args:
        maps: what is refused, for the message.
        tags: tile -> digest of the roles that the model was trained with.
        run: the folder `split` of its run, if it was found: labels may have changed since.

    Raises:
        SplitError: pointing to a reference sample.
    """
    # A whole tile may train in a split too, and without a CRS tiles of one size are distinguished by their roles only.
    labelled = [scene for scene in scenes if (scene.labels != UNLABELLED).any()]
    said = all(str(tags.get(one.name)).endswith(ALL_LABELS) for one in labelled)
    learnt = [roles_digest(all_train(one.labels), one.grid) in str(tags.get(one.name)) for one in labelled]
    if (said and learnt and all(learnt)) or (run is not None and (run.parent / "cross_validation").is_dir()):
        raise SplitError(
            f"the model of {maps} was trained on all labels of the scene: they cannot show how good the map is",
            "labels that it has not seen",
            f"draw points and label them: landfuse sample {maps} -n 500 -o sample.gpkg (the cross-validated score is "
            "in scores.json of its run)",
        )


def _known(tags: Mapping[str, str | None], scenes: Sequence[Scene]) -> list[Scene]:
    """The tiles that the model of their maps was trained on."""
    return [scene for scene in scenes if len(tags.get(scene.name) or "") >= _DIGEST]


def _run_split(tags: Mapping[str, str | None], scenes: Sequence[Scene], near: Sequence[str | Path]) -> Path | None:
    """The folder `split` of the run whose model made the maps: of one that holds them, or is in a `runs/` near by."""
    known, places = _known(tags, scenes), [Path(place).resolve() for place in near]
    for base in dict.fromkeys(above for place in places for above in (place, *list(place.parents)[:2])):
        for pattern in ("split", "*/split", "runs/*/split", "runs/*/*/split"):
            for folder in sorted(base.glob(pattern)) if known else ():
                if all(_written_digest(folder, scene) in str(tags[scene.name]) for scene in known):
                    return folder
    return None


def _written_digest(folder: Path, scene: Scene) -> str:
    try:
        return roles_digest(read_mask(scene, str(folder / f"{scene.name}.tif"), None, "HW"), scene.grid)
    except LandfuseError:
        return "none"


def _roles_of(
    file: SceneFile,
    scenes: Sequence[Scene],
    role: str,
    split: str | Path | None,
    run: Path | None,
    tags: Mapping[str, str | None],
) -> tuple[Sequence[Roles | None], list[str]]:
    """The roles by which pixels are scored, and what is to be said of them.

    Raises:
        SplitError: if they are not those that the model was trained with, unless they were asked for.
    """
    known, notes = _known(tags, scenes), []
    if any(tag is None for tag in tags.values()):
        notes.append("the map does not say which pixels its model was trained on; they may be among those scored")
    if role == "all":
        notes += ["all labelled pixels are scored, those that the model was trained on too"] if known else []
        return [None] * len(scenes), notes
    of_run = dict(zip([one.name for one in known], file.written_roles(known, run), strict=True)) if run else {}
    roles = [of_run.get(scene.name) for scene in scenes]
    if len(of_run) < len(scenes):
        own = file.roles(scenes) if split is None else file.written_roles(scenes, split)
        roles = [mine if other is None else other for mine, other in zip(own, roles, strict=True)]
    names = {scene.name for scene in known} - of_run.keys()
    pairs = [(scene, found) for scene, found in zip(scenes, roles, strict=True) if scene.name in names]
    other = [s.name for s, found in pairs if found is not None and roles_digest(found, s.grid) not in str(tags[s.name])]
    if other and split is None:
        raise SplitError(
            f"the model of the map was trained with another split of `{other[0]}` than that of {file.path}, and its "
            "run is not found: training pixels may be among those scored",
            "the roles that the model was trained with, as the run folder has them",
            "name them by --split RUN/split; or score all labelled pixels, those of training too, by --role all",
        )
    if other:
        notes.append(
            f"the model was trained with another split than {split}; training pixels may be among those scored"
        )
    elif known:
        where = f", as the run {run.parent} has it" if run else ""  # perhaps that of another run with the same split
        notes.append(f"scored are the {role} pixels of the split that the model was trained with{where}")
    return roles, notes


def _refuse_nothing(tally: Tally, role: str) -> None:
    if not tally.confusion.pixels:
        raise SplitError(
            f"no labelled pixel of the role `{role}` has a class in the map", "labelled pixels", "choose another role"
        )


def _role_of(file: SceneFile, role: str | None, split: str | Path | None) -> str:
    """The role that is scored: the one asked for, else `test` where there is a split, else `all`."""
    if file.settings.labels is None:
        raise SceneError(f"{file.path} has no labels", "`labels:` and `legend:` in the scene file", "add them")
    chosen = role or ("test" if split is not None or file.settings.split else "all")
    if chosen != "all" and chosen not in ROLES:
        raise SplitError(f"there is no role `{chosen}`", f"all, {', '.join(ROLES)}", "choose one")
    return chosen


def _scored_tiles(
    maps: Sequence[str | Path],
    scenes: Sequence[Scene],
    role: str,
    roles: Sequence[Roles | None],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]]:
    """The labels of a role and the classes of the maps, tile by tile; tiles without such labels are skipped.

    Returns:
        (H, W) classes of the labels, `UNLABELLED` elsewhere, and an array of classes for each of the maps.
    """
    for done, (scene, scene_roles) in enumerate(zip(scenes, roles, strict=True)):
        progress(done, len(scenes))
        truth = scene.labels
        if scene_roles is not None:
            truth = np.where(scene_roles == ROLES[role], truth, UNLABELLED).astype(np.uint8)
        if (truth != UNLABELLED).any():
            yield truth, [open_map(map_of(one, scene, len(scenes)), scene).classes for one in maps]
