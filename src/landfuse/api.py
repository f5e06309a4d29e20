"""The face: what people call, above everything else."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.applicability import Applicability
from landfuse.accuracy.conformal import ClassSets, sets_of
from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.evaluate import Evaluation, Tally, refuse_learnt
from landfuse.bundles.description import Description
from landfuse.bundles.predictor import Model, Predictor
from landfuse.bundles.settings import Method, PredictorOptions
from landfuse.bundles.table_bundle import TableBundle, load_model
from landfuse.errors import GridError, ModelError, SceneError, SettingsError, SplitError, nearest
from landfuse.figures.figures import (
    by_pyplot,
    check_figure,
    classes_figure,
    confusion_figure,
    curves_figure,
    scene_figure,
)
from landfuse.legend import UNLABELLED, Legend
from landfuse.mapping.destination import Destination, inputs_of
from landfuse.mapping.engine import BlockMap, Engine
from landfuse.mapping.map_layers import layers_of
from landfuse.mapping.memory import block_side
from landfuse.mapping.predict import predict as _predict
from landfuse.mapping.settings import MapOptions, MappingSettings, map_options
from landfuse.models import SETTINGS, name_of
from landfuse.progress import bars
from landfuse.rasters.arrays import array_raster, is_data_array, like_data_array
from landfuse.rasters.raster import state_of
from landfuse.rasters.stacked import StackedRaster
from landfuse.scenes.check import Report
from landfuse.scenes.from_arrays import Classes, Image, Labels, scene_from
from landfuse.scenes.land_cover_map import LandCoverMap, beside, open_map
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_mask
from landfuse.scenes.split_rules import TEST, Roles, RolesSplit, SplitSettings
from landfuse.scenes.split_search import largest_blocks
from landfuse.scenes.splits import all_train, assign
from landfuse.series.series_raster import SeriesRaster
from landfuse.settings import Settings, parse
from landfuse.training.recipe import ARRAYS, Recipe, merged_split, read_recipe
from landfuse.training.run import Run, read_run
from landfuse.training.settings import SampleSettings, TrainingSettings

if TYPE_CHECKING:  # imported where they are used: a picture or a map by other means than torch needs none
    from landfuse.bundles.bundle import Bundle
    from landfuse.models.base import FusionModel

log = logging.getLogger("landfuse")

_SECTIONS: dict[str, type[Settings]] = {
    "samples": SampleSettings,
    "training": TrainingSettings,
    "mapping": MappingSettings,
}
_OWN = ("modalities", "pixel_maps", "pretrain", "features", "split", *_SECTIONS)
"""What a classifier takes beside the model and the settings by their names: keys of a recipe."""


class Classifier:
    """A fusion model that is fitted to arrays, DataArrays, paths or a scene, as scikit-learn's estimators are.

    Settings are keywords: those of the model (`landfuse.models.SETTINGS`), of samples (`SampleSettings`), training
    (`TrainingSettings`) and mapping (`MappingSettings`). A name that several have sets the first that has it, in this
    order: model, samples, training, mapping. `batch` is thus that of samples and `precision` that of training; the
    others are reached by a section as in a recipe: `mapping={"batch": 16}`, or `samples={"balanced": True}` beside
    the forest's own `balanced`. As in scikit-learn, nothing but the keywords' names is checked before `fit`.

    Args:
        model: name of a model, a class (a `FusionModel`), or a recipe's `{"name": ..., setting: value, ...}`.
        modalities: which images are used, in this order; all by default.
        pixel_maps: modality -> how its bands become channels, e.g. `{"hsi": {"kind": "pca", "components": 12}}`;
            `default` for those not named.
        pretrain: how a denoiser is trained first; None for none.
        features: which features of the denoiser the model gets. For the forest's own `features`, use
            `model={"name": "forest", "features": 0.5}`.
        split: settings of the split that `fit` uses where it gets none; by default the largest blocks that lose no
            class. Without `kind` they are those of blocks, and without `size` it is chosen.
        samples: section of a recipe, for what a keyword does not reach.
        training: likewise.
        mapping: likewise.
        settings: keywords, e.g. `view=64, epochs=20, seed=1`.

    Raises:
        SettingsError: if there is no such keyword; it names the nearest one.

    Examples:
        >>> lf.Classifier("refnet", view=64, epochs=20, rate=1e-3)
        Classifier('refnet', view=64, epochs=20)
        >>> import numpy as np
        >>> labels = np.arange(32) // 8 % 2 + np.ones((32, 1), int)
        >>> images = {"s2": labels + 0.1 * np.random.default_rng(0).standard_normal((4, 32, 32))}
        >>> forest = lf.Classifier("forest", trees=10).fit(images, labels, progress=False)
        >>> forest.run.scores["test"]["OA"]
        1.0
        >>> forest.predict(images, progress=False)[0, 6:10]
        array([1, 1, 2, 2], dtype=uint8)
    """

    def __init__(
        self,
        model: str | type[FusionModel] | Mapping[str, Any],
        *,
        modalities: Sequence[str] | None = None,
        pixel_maps: Mapping[str, Any] | None = None,
        pretrain: Mapping[str, Any] | None = None,
        features: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        samples: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        mapping: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        own = (modalities, pixel_maps, pretrain, features, split, samples, training, mapping)
        self._given: dict[str, Any] = {"model": model, **dict(zip(_OWN, own, strict=True)), **settings}
        _check_names(model, settings)
        self._model: Model | None = None
        self._run: Run | None = None
        self._split: SplitSettings | None = None
        self._roles: Roles | None = None

    # ---- parameters --------------------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name: those set, and the defaults of the others. `deep` is there for scikit-learn."""
        return {**_defaults(self._given["model"]), **self._given}

    def set_params(self, **params: Any) -> Classifier:
        """Sets parameters, checks their names and returns the classifier; what it was fitted to stays.

        Raises:
            SettingsError: if there is no such parameter, or the new model lacks one that was set before.
        """
        given = {**self._given, **params}
        _check_names(given["model"], [name for name in given if name not in ("model", *_OWN)])
        self._given = given
        return self

    def __sklearn_clone__(self) -> Classifier:
        """A classifier of the same parameters that is not fitted."""
        return type(self)(**copy.deepcopy(self._given))

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` was called, or it was loaded."""
        return self._model is not None

    def __repr__(self) -> str:
        defaults = _defaults(self._given["model"])
        changed = [
            f"{name}={value!r}"
            for name, value in self._given.items()
            if name != "model" and not _same(value, defaults.get(name))
        ]
        return f"{type(self).__name__}({', '.join([_shown(self._given['model']), *changed])})"

    def _sections(self) -> dict[str, dict[str, Any]]:
        """The settings by `model`, `samples`, `training` and `mapping`; one that is set twice is refused."""
        sections: dict[str, dict[str, Any]] = {key: dict(self._given[key] or {}) for key in _SECTIONS}
        model = self._given["model"]
        sections["model"] = {k: v for k, v in model.items() if k != "name"} if isinstance(model, Mapping) else {}
        homes = _homes(model)
        for key, value in self._given.items():
            if key == "model" or key in _OWN:
                continue
            section = homes.get(key, "model")  # the model is not known, which the recipe reports
            if key in sections[section]:
                raise SettingsError(
                    f"`{key}` is set twice, by its name and in `{section}`", "one of them", "leave one out"
                )
            sections[section][key] = value
        return sections

    def _recipe(self) -> Recipe:
        """The parameters as a recipe, checked; of arrays and a run that are not known yet."""
        sections = self._sections()
        model = {"name": _named(self._given["model"]), **sections["model"]}
        values: dict[str, Any] = {"scene": ARRAYS, **sections, "model": model}
        for key in ("modalities", "pixel_maps", "pretrain", "features"):
            if self._given[key] is not None:
                values[key] = self._given[key]
        return parse(Recipe, values, f"Classifier({_shown(self._given['model'])})")

    # ---- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Mapping[str, Image] | Scene,
        labels: Labels | None = None,
        split: Any | None = None,
        *,
        legend: Classes | None = None,
        unlabelled: int | Collection[int] | None = 0,
        column: str | None = None,
        run: str | Path | None = None,
        progress: bool = True,
    ) -> Classifier:
        """Trains the model; as `landfuse.train` does from files, with the same result for the same pixels and settings.

        Args:
            images: name -> array (C, H, W) or (H, W), DataArray, Dataset, `landfuse.with_dates` of one, or path, in any
                mixture; or a scene. See `Scene.from_arrays`.
            labels: (H, W) whole-number codes: an array, a DataArray or a path; or polygons, with `column`. By default
                those of a scene.
            split: roles, (H, W) (0 none, 1 train, 2 validation, 3 test, 4 calibration), as an array, a DataArray or a
                path; or the settings of a split, e.g. `{"kind": "random", "train": 0.2}`. By default the largest blocks
                that lose no class (`split` is then what was chosen). The test pixels are scored once, at the end
                (`run.scores`).
            legend: a `Legend`, names (of the codes 1, 2, ...) or code -> name; by default the codes that occur.
            unlabelled: code or codes of pixels without a label, unless the legend names them; 255 always is one.
            column: of polygons: the attribute that names the class.
            run: folder of the run, as `landfuse train` writes it: an interrupted fit of the same arrays and settings
                goes on there, and one that has ended is loaded. By default a temporary one, which is removed together
                with this object.
            progress: show progress bars.

        Returns:
            The classifier itself, fitted.

        Raises:
            LandfuseError: whatever is wrong with images, labels, split or settings.
        """
        from landfuse.training.train import train_on
        from landfuse.training.training_data import TrainingData, checked_data

        scene = scene_from(images, labels, legend=legend, unlabelled=unlabelled, column=column)
        if scene.read_labels is None:
            raise SceneError(
                "`fit` was called without labels", "(H, W) codes, a path, or polygons", "call fit(images, labels)"
            )
        chosen = self._given["modalities"]
        recipe = self._recipe()
        recipe.check_modalities(list(scene.modalities), "the images")
        if chosen is not None:
            scene = replace(scene, modalities={name: scene.modalities[name] for name in chosen})
        present = np.unique(scene.labels)
        if (present != UNLABELLED).sum() < 2:
            raise SceneError(
                f"the labels hold {'one class only' if (present != UNLABELLED).any() else 'no class'}",
                "two classes or more",
                "check the labels, and which code means unlabelled (`unlabelled`)",
            )
        used, roles = _split_of(scene, self._given["split"] if split is None else split)
        if run is None:
            scratch = Path(tempfile.mkdtemp(prefix="landfuse-"))
            weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
            folder = scratch / "fit" / "run"  # two deep: denoisers of other runs are looked for that far around
        else:
            folder = Path(run)
        name = ARRAYS if run is None else ARRAYS + _digest(scene, roles)
        recipe = recipe.model_copy(update={"scene": name, "run": str(folder)})

        def read(own: Recipe) -> TrainingData:
            split = merged_split(used, own.split) if used is not None else None
            given = [roles] if own.split is None or split is None else assign([scene], split, read_mask)
            return checked_data([scene], given, scene.legend, split)

        bundle = train_on(recipe, read, progress=progress)
        self._model, self._split = bundle, used
        self._roles = roles if bundle.cross_validation is None else all_train(scene.labels)
        self._run = read_run(folder) if (folder / "scores.json").exists() else None  # none on a further rank of several
        return self

    @property
    def bundle(self) -> Bundle:
        """What was fitted: pixel maps, network (`bundle.model`), legend and calibration.

        Raises:
            ModelError: if it is not fitted, or was loaded from an ONNX file.
        """
        model = self._fitted_model
        if hasattr(type(model), "session"):
            raise ModelError(
                "this Classifier was loaded from an ONNX file, which is mapped with only", "a bundle", "load its bundle"
            )
        if isinstance(model, TableBundle):  # which was loaded without torch
            from landfuse.bundles.bundle_files import load_bundle

            model = self._model = load_bundle(model.folder)
        return cast("Bundle", model)

    @property
    def _fitted_model(self) -> Model:
        if self._model is None:
            raise ModelError(
                "this Classifier is not fitted", "`fit`, before its results are used", "call fit(images, labels)"
            )
        return self._model

    @property
    def run(self) -> Run:
        """The run that it was fitted by: `folder`, `scores` (of the test pixels), `history`.

        Raises:
            ModelError: if it is not fitted, or was loaded from a bundle, which holds no run.
        """
        _ = self._fitted_model
        if self._run is None:
            raise ModelError("this Classifier was loaded from a bundle", "a run's folder, to know its run", "load that")
        return self._run

    @property
    def legend(self) -> Legend:
        """The classes: names, codes and colours."""
        return self.description.legend

    @property
    def classes_(self) -> NDArray[np.uint8]:
        """The codes of the classes, (K,), in the order of `predict_proba`."""
        return self.legend.codes

    @property
    def split(self) -> SplitSettings | None:
        """The settings of the split that `fit` used; None where roles were passed, or before `fit`."""
        return self._split

    @property
    def roles(self) -> Roles | None:
        """(H, W) uint8: 0 none, 1 train, 2 validation, 3 test, 4 calibration; None where this was not fitted itself."""
        return self._roles

    # ---- mapping -----------------------------------------------------------------------------------------------------

    def predict(self, images: Mapping[str, Image] | Scene, *, progress: bool = True) -> Any:
        """Maps images, block by block: the memory that is taken beside the result does not depend on their size.

        Args:
            images: as in `fit`, with the names, bands and zooms that it was fitted to. One that the model was trained
                to do without (`modality_dropout`), or for which `mean_for` was set, may be missing.
            progress: show a progress bar.

        Returns:
            (H, W) uint8 codes of the legend, 255 where there is no data: a DataArray with the coordinates and CRS of
            the images if one of them is a DataArray or Dataset, else an array.

        Raises:
            LandfuseError: if the images do not fit together, or are of another kind than those it was fitted to.
        """
        scene = self._scene(images)
        codes = np.full((scene.grid.height, scene.grid.width), UNLABELLED, np.uint8)
        for part in self._mapped(scene, progress):
            codes[part.window.within(scene.grid.window)] = self.legend.to_codes(part.classes)
        meanings = " ".join(name.replace(" ", "_") for name in self.legend.names)
        attributes = {"_FillValue": UNLABELLED, "flag_values": self.classes_, "flag_meanings": meanings}
        return _as_images(images, codes, scene, "land_cover", attributes)

    def predict_proba(self, images: Mapping[str, Image] | Scene, *, progress: bool = True) -> Any:
        """Calibrated probabilities; arguments and errors as in `predict`.

        Returns:
            (K, H, W) float32 in the order of `classes_`, NaN where there is no data; a DataArray with the dimension
            `class` first if one of the images is a DataArray or Dataset, else an array.
        """
        scene = self._scene(images)
        shape = (len(self.legend), scene.grid.height, scene.grid.width)
        probabilities = np.full(shape, np.nan, np.float32)
        for part in self._mapped(scene, progress):
            place = part.window.within(scene.grid.window)
            probabilities[:, *place] = np.where(part.classes != UNLABELLED, part.probabilities, np.nan)
        return _as_images(images, probabilities, scene, "probability", {}, ("class", self.legend.names))

    def predict_sets(
        self,
        images: Mapping[str, Image] | Scene,
        level: float = 0.9,
        *,
        method: Method = "lac",
        by_class: bool = False,
        progress: bool = True,
    ) -> Any:
        """The classes that each pixel may have, so that the true one is among them at a stated level.

        Args:
            images: as in `predict`.
            level: how often the true class is in a pixel's set, above 0 and below 1.
            method: `lac`, `aps` or `raps`; see `landfuse.accuracy.conformal`.
            by_class: let the level hold for the pixels of each class.
            progress: show a progress bar.

        Returns:
            (K, H, W) uint8 in the order of `classes_`: 1 for a class in the set, else 0; 255 where there is no data. A
            DataArray if one of the images is one.

        Raises:
            SettingsError: if it was fitted without calibration blocks, or with too few for the level.
        """
        known = ClassSets.of(self.description)
        thresholds = known.thresholds(level, method, by_class)[:, None, None]
        known.warn(level, by_class)
        scene = self._scene(images)
        sets = np.full((len(self.legend), scene.grid.height, scene.grid.width), UNLABELLED, np.uint8)
        for part in self._mapped(scene, progress):
            found = sets_of(part.probabilities, thresholds, method)
            sets[:, *part.window.within(scene.grid.window)] = np.where(part.classes != UNLABELLED, found, UNLABELLED)
        return _as_images(images, sets, scene, "class_set", {"_FillValue": UNLABELLED}, ("class", self.legend.names))

    def predict_dissimilarity(self, images: Mapping[str, Image] | Scene, *, progress: bool = True) -> Any:
        """How unlike the training pixels each pixel is: beyond 1, do not rely on the map; arguments as in `predict`.

        Returns:
            (1 + M, H, W) float32, at most 2.5: by the modalities together, then by each; NaN where there is no data. A
            DataArray if one of the images is one. See `landfuse.accuracy.applicability`.

        Raises:
            SettingsError: if it was fitted to pixels of a single group of the split.
        """
        names = ["together", *Applicability.of(self.description).points]
        scene = self._scene(images)
        found = np.full((len(names), scene.grid.height, scene.grid.width), np.nan, np.float32)
        for part in self._mapped(scene, progress, applicability=True):
            found[:, *part.window.within(scene.grid.window)] = part.dissimilarity_in(slice(None))
        return _as_images(images, found, scene, "dissimilarity", {}, ("compared_by", names))

    def evaluate(
        self,
        images: Mapping[str, Image] | Scene,
        labels: Labels | None = None,
        split: Any | None = None,
        *,
        unlabelled: int | Collection[int] | None = 0,
        column: str | None = None,
        block: int = 64,
        progress: bool = True,
    ) -> Evaluation:
        """Scores the map of images against labels. Scores of pixels that it was fitted to are far too good.

        Args:
            images: as in `predict`.
            labels: as in `fit`; codes or names of the classifier's legend.
            split: roles, (H, W), of which the test pixels are scored, e.g. `classifier.roles`; all labelled pixels by
                default.
            unlabelled: as in `fit`.
            column: as in `fit`.
            block: side of the blocks of ground that 95% intervals come from, px.
            progress: show a progress bar.

        Returns:
            `.confusion.scores()` and `.intervals()`, as of `landfuse.evaluate`.

        Raises:
            SplitError: if no pixel is labelled, or it was fitted to all these labels (`use="all"`).
        """
        scene = self._scene(images, labels, unlabelled=unlabelled, column=column)
        truth = scene.labels
        if isinstance(images, Scene) and labels is None and scene.legend != self.legend:
            truth = self.legend.to_classes(scene.legend.to_codes(truth), where=f"the labels of `{scene.name}`")
        refuse_learnt("this Classifier", {scene.name: self.description.learnt_at(scene.grid)}, [scene], None)
        if split is not None:
            truth = np.where(_split_of(scene, split)[1] == TEST, truth, UNLABELLED).astype(np.uint8)
        if not (truth != UNLABELLED).any():
            raise SplitError("no pixel is labelled", "labels to score the map by", "check them, and `split`")
        mapped = np.full(truth.shape, UNLABELLED, np.uint8)
        for part in self._mapped(scene, progress, truth != UNLABELLED):
            mapped[part.window.within(scene.grid.window)] = part.classes
        tally = Tally(self.legend, block)
        tally.add(truth, mapped)
        return Evaluation(tally, "all" if split is None else "test")

    def _scene(self, images: Mapping[str, Image] | Scene, labels: Labels | None = None, **words: Any) -> Scene:
        """What is mapped, with a message of its own where images are missing or not known."""
        expected = self.description.modalities
        if not isinstance(images, Scene) and isinstance(images, Mapping):
            options = self._options()
            needed = [name for name in expected if name not in (*self.description.droppable, *options.mean_for)]
            unknown = [str(name) for name in images if name not in expected]
            missing = [name for name in needed if name not in images]
            if unknown or missing or not images:
                wrong = [f"lack {', '.join(f'`{name}`' for name in missing)}"] if missing else []
                wrong += [f"name {', '.join(f'`{name}`' for name in unknown)}, not known to it"] if unknown else []
                raise ModelError(
                    f"the images {' and '.join(wrong) or 'are empty'}",
                    f"those that the model was fitted to: {', '.join(expected)}",
                    "pass them by these names; or fit with `modality_dropout=0.2`, by which a model learns to do "
                    "without one; or let the training mean stand in, at your own risk, by `mean_for`",
                )
        return scene_from(images, labels, legend=self.legend, like=expected, **words)

    def _options(self) -> MapOptions:
        settings = parse(MappingSettings, self._sections()["mapping"], repr(self))
        return MapOptions(**{**settings.model_dump(exclude={"stride", "weights"}), "allow_missing": True})

    def _mapped(
        self, scene: Scene, progress: bool, wanted: NDArray[np.bool_] | None = None, *, applicability: bool = False
    ) -> Iterator[BlockMap]:
        """Maps a scene block by block."""
        options = self._options().model_copy(update={"applicability": applicability})
        engine = Engine(self._fitted_model, scene, options)
        if wanted is None:
            engine.check_values()
        windows = engine.cut(engine.options.block or block_side(engine), wanted)
        pixels = sum(window.pixels for window in windows)
        done = 0
        with bars(not progress) as meter:

            def advance(more: int) -> None:
                nonlocal done
                done += more
                meter("mapping", done, pixels)

            yield from engine.blocks(windows, wanted=wanted, progress=advance)

    # ---- a `Model`, for all that maps --------------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        """All that is known of the fitted model beside its weights: modalities, legend, view, core, stride."""
        return self._fitted_model.description

    def predictor(self, options: PredictorOptions = PredictorOptions()) -> Predictor:  # noqa: B008  (frozen)
        """Makes it ready for the mapping engine; for `landfuse.predict` and `landfuse.map_array`."""
        return self._fitted_model.predictor(options)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the fitted model as a bundle: `model.safetensors` and `model.json`, all that mapping needs.

        Raises:
            OutputError: if it cannot be written, or other files of these names are there and `overwrite` is not set.
        """
        self.bundle.save(folder, overwrite=overwrite)


def load(folder: str | Path, *, model: type[FusionModel] | None = None) -> Classifier:
    """A fitted classifier from a bundle, or from the folder of a run.

    Args:
        folder: as `Classifier.save` or `landfuse train` wrote it; or an ONNX file of `landfuse export`.
        model: the class of its model, where that is one of your own that no installed package offers.

    Raises:
        BundleError: if it holds no bundle, one that is damaged or newer, or one of a model that is not known here.

    Examples:
        >>> lf.load("runs/first").legend.names == lf.open_scene("scene.yaml").legend.names
        True
    """
    found, path = load_model(folder, model=model), Path(folder)
    run = path if (path / "recipe.json").exists() else path.parent
    whole = path.name == "bundle" or run == path
    if whole and (run / "scores.json").exists() and (run / "recipe.json").exists():
        return _fitted(found, read_run(run))
    return _fitted(found)


def _fitted(fitted: Model, run: Run | None = None) -> Classifier:
    """A classifier of a bundle, with the parameters of its run where there is one."""
    known = fitted.description
    recipe: Mapping[str, Any] = run.recipe if run is not None else {
        "model": {"name": known.spec.name, **known.spec.settings},
        "mapping": {"stride": None if known.stride == known.core else known.stride, "weights": known.weights},
    }  # fmt: skip
    name = str(recipe["model"]["name"])
    model = known.spec.kind or name
    homes, params = _homes(model), dict[str, Any]()
    for section, kind in _kinds(model).items():
        usual = _plain(kind)
        changed = {
            key: value
            for key, value in dict(recipe.get(section) or {}).items()
            if key in kind.model_fields and not _same(value, usual.get(key))
        }
        direct = {key: value for key, value in changed.items() if homes.get(key) == section}
        params |= direct
        rest = {key: value for key, value in changed.items() if key not in direct}
        if rest:
            params[section] = {"name": name, **rest} if section == "model" else rest
    for key in ("modalities", "pixel_maps", "pretrain", "features", "split"):
        if recipe.get(key):
            params[key] = recipe[key]
    classifier = Classifier(**{"model": model, **params})
    classifier._model, classifier._run = fitted, run
    return classifier


def train(recipe: Recipe | str | Path, *assignments: str, progress: bool = True) -> Classifier:
    """Trains what a recipe says, or goes on where it was interrupted.

    Args:
        recipe: a recipe, or the path of one.
        assignments: `key.sub=value`, for a path.
        progress: show progress bars.

    Returns:
        A fitted classifier of the best epoch, whose `run` has the folder and the scores of the test pixels; a run that
        ended before is loaded, not repeated.

    Raises:
        LandfuseError: whatever is wrong with recipe, scene, split or output.

    Examples:
        >>> classifier = lf.train("recipe.yaml", progress=False)
        >>> classifier.run.scores["test"]["pixels"] > 0
        True
    """
    if not isinstance(recipe, Recipe):
        recipe, assignments = read_recipe(recipe, assignments), ()
    from landfuse.training.train import train as train_recipe

    bundle = train_recipe(recipe, *assignments, progress=progress)
    folder = Path(recipe.run or "runs/unnamed")
    return _fitted(bundle, read_run(folder) if (folder / "scores.json").exists() else None)


def predict(
    model: Model | str | Path,
    scene: Scene | Mapping[str, Image],
    path: str | Path,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Maps a scene into a GeoTIFF of the legend's codes, with its colours and names; 255 where there is no data.

    The files are cloud-optimised and appear when they are whole. Until then finished blocks are in `map.tif.parts/`;
    the same call goes on from them, and ends in the same bytes.

    Args:
        model: a `Classifier` or a `Bundle`; or the path of a bundle, of a run's folder, or of an ONNX file.
        scene: what is mapped; or images, as in `Classifier.predict`.
        path: of the map.
        overwrite: replace files that are no map of this model.
        options: `restart=True` to delete the blocks of an earlier, unfinished call; `keep=True` to leave the empty part
            folder, by which the same call knows that the map is finished; `progress`, called with the pixels done and
            the pixels in all; and those of mapping, e.g. `confidence=True` or `memory="4GiB"`.

    Returns:
        The map's path.

    Raises:
        FaultsError: if the scene does not fit the model.
        OutputError: if a file cannot be written, is one that the scene is read from, or is there and no map of this
            model; if the part folder holds blocks of another map, or another process is writing this map.
        SettingsError: if an option does not fit.
        IncompleteError: if some blocks cannot be read; the map is there without them.

    Examples:
        >>> lf.predict("runs/first", lf.open_scene("scene.yaml"), "again.tif", confidence=True).name
        'again.tif'
    """
    if isinstance(model, str | Path):
        known = load_model(model)
    else:
        known = model
    if not isinstance(scene, Scene):
        scene = scene_from(scene, like=known.description.modalities)
    chosen = map_options({name: value for name, value in options.items() if name in MapOptions.model_fields})
    sign = known.predictor(chosen).identity["the model"]
    layers = layers_of(chosen, known.description)
    if chosen.sets is not None:
        ClassSets.of(known.description).warn(chosen.sets, chosen.sets_by_class)
    outputs = [(beside(path, layer.name), sign) for layer in layers]
    Destination(str(path)).check(outputs, inputs_of(scene), overwrite)
    return _predict(known, scene, path, **options)


# ---- the settings of a classifier by name ----------------------------------------------------------------------------


def _kind(model: Any) -> type[Settings] | None:
    """The settings of a model; None if there is no such model."""
    if isinstance(model, type):
        found = getattr(model, "Settings", None)
        return found if isinstance(found, type) and issubclass(found, Settings) else None
    name = model.get("name") if isinstance(model, Mapping) else model
    return SETTINGS.get(name) if isinstance(name, str) else None


def _kinds(model: Any) -> dict[str, type[Settings]]:
    """The settings by the section of a recipe that they are in; those of a model that is not known are none."""
    return {"model": _kind(model) or Settings, **_SECTIONS}


def _named(model: Any) -> Any:
    """A model's name for recipes and bundles; a class is registered by it."""
    if isinstance(model, type):
        return name_of(model)
    return model.get("name") if isinstance(model, Mapping) else model


def _shown(model: Any) -> str:
    return model.__name__ if isinstance(model, type) else repr(model)


def _check_names(model: Any, names: Collection[str]) -> None:
    """Refuses keywords that are no settings of a model, of samples, training or mapping."""
    if _kind(model) is None:
        return  # `fit` reports that there is no such model
    known = _homes(model)
    for name in names:
        if name not in known:
            raise SettingsError(
                f"Classifier({_shown(model)}) has no setting `{name}`",
                f"one of: {', '.join(sorted({*known, *_OWN}))}",
                nearest(name, [*known, *_OWN], "correct the keyword", cutoff=0.5),
            )


def _homes(model: Any) -> dict[str, str]:
    """Every setting by name -> where it belongs: `model`, `samples`, `training` or `mapping`, the first that has it."""
    homes: dict[str, str] = {}
    for section, kind in _kinds(model).items():
        for name in kind.model_fields:
            if name not in _OWN:
                homes.setdefault(name, section)
    return homes


def _plain(kind: type[Settings]) -> dict[str, Any]:
    """The defaults of settings by name; those that must be given are left out."""
    try:
        whole = kind()
    except ValueError:
        return {n: field.get_default() for n, field in kind.model_fields.items() if not field.is_required()}
    return {name: getattr(whole, name) for name in kind.model_fields}


def _defaults(model: Any) -> dict[str, Any]:
    """The defaults of all parameters by name."""
    found: dict[str, Any] = dict.fromkeys(_OWN)
    homes = _homes(model)
    for section, kind in _kinds(model).items():
        found |= {name: value for name, value in _plain(kind).items() if homes.get(name) == section}
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal, settings and tuples also where one of them is plain."""
    one, other = (
        value.model_dump(mode="json")
        if isinstance(value, Settings)
        else list(value)
        if isinstance(value, tuple)
        else value
        for value in (one, other)
    )
    return bool(type(one) is type(other) and one == other) or (
        isinstance(one, int | float) and isinstance(other, int | float) and one == other
    )


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _split_of(scene: Scene, split: Any) -> tuple[SplitSettings | None, Roles]:
    """The roles of a scene's pixels, and the settings that they follow from, if any."""
    if isinstance(split, str | Path):
        split = RolesSplit(kind="roles", path=str(split))
    if split is None or isinstance(split, Mapping):
        chosen = dict(split or {})
        if chosen.get("kind", "blocks") == "blocks" and "size" not in chosen:
            found, roles = largest_blocks(scene, chosen)
            log.info("the split: blocks of %d px, the largest that lose no class; pass `split` for another", found.size)
            return found, roles
        split = merged_split(None, {"kind": "blocks", **chosen})
    if isinstance(split, Settings):
        settings: Any = split
        return settings, assign([scene], settings, read_mask)[0]
    raster = array_raster(split, "split")
    shape = (scene.grid.height, scene.grid.width)
    if (raster.grid.height, raster.grid.width) != shape or raster.bands != 1:
        raise GridError(
            f"the roles of `split` have the shape {tuple(raster.values.shape)}",
            f"{shape}, as the labels",
            "give each pixel a role",
        )
    given = raster.read_codes()
    return None, assign([scene], RolesSplit(kind="roles", path="split"), lambda *_: given)[0]


def _digest(scene: Scene, roles: Roles) -> str:
    """SHA-256 of what a model is fitted to."""
    known = hashlib.sha256(str(scene.grid).encode())
    for name, part in scene.modalities.items():
        known.update(f"{name} {part.zoom} {part.units} {part.raster.path} {state_of(part.raster)}".encode())
    known.update(f"{scene.legend}".encode())
    known.update(scene.labels.tobytes())
    known.update(roles.tobytes())
    return known.hexdigest()


def _as_images(
    images: Any,
    values: NDArray[Any],
    scene: Scene,
    name: str,
    attributes: Mapping[str, Any],
    bands: tuple[str, Sequence[str]] | None = None,
) -> Any:
    """Values as what the images were: a DataArray if one of them was one, else an array."""
    rasters = [] if isinstance(images, Scene) else [part.raster for part in scene.modalities.values()]
    arrays = [one for one in map(_values_of, rasters) if is_data_array(one)]
    if not arrays:
        return values
    coarsest = min(arrays, key=lambda image: array_raster(image, name).grid.height)
    return like_data_array(coarsest, values, scene.grid, name, attributes, bands)


def _values_of(raster: Any) -> Any:
    """The array of a raster, the first one of a series or a stack; None where it is a file."""
    raster = raster.dates[0].raster if isinstance(raster, SeriesRaster) else raster
    raster = raster.parts[0] if isinstance(raster, StackedRaster) else raster
    return getattr(raster, "values", None)


# ---- pictures --------------------------------------------------------------------------------------------------------


def plot(
    shown: Scene | Report | LandCoverMap | Confusion | Run | str | Path,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[int]] | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Draws a scene, what `check` found, a map, a confusion matrix or a run with matplotlib's pyplot.

    Args:
        shown: what is drawn: a scene (modalities and labels side by side), a report of `landfuse.check` (these, split,
            leaks, and pixels and values of each class), a map or the path of one (over its legend),
            a confusion matrix (counts, shaded by the fraction of their row), a run or its folder (loss and validation
            scores over the epochs).
        modalities: of a scene: which, in order; all by default.
        bands: of a scene: modality -> the bands to show, from 1: three for red, green and blue, or one for grey.
        names: of a confusion matrix: K names; by default the numbers 0..K-1.

    Returns:
        Axes of matplotlib; an array of them where there are several.

    Raises:
        SettingsError: if `shown` is something else.
        SceneError: if the scene or map cannot be read, or lacks a band.

    Examples:
        >>> len(lf.plot(lf.open_scene("scene.yaml")))  # two modalities, and the labels
        3
        >>> lf.plot("map.tif").get_title()
        'map'
    """
    if isinstance(shown, str | Path):
        shown = read_run(shown) if Path(shown).is_dir() else open_map(shown)
    with by_pyplot():
        if isinstance(shown, Scene):
            figure = scene_figure(shown, modalities, bands)
        elif isinstance(shown, Report):
            figure = check_figure(shown)
        elif isinstance(shown, LandCoverMap):
            figure = classes_figure(shown.classes, shown.legend, shown.path.stem)
        elif isinstance(shown, Confusion):
            figure = confusion_figure(shown.matrix, list(names) or [str(number) for number in range(shown.classes)])
        elif isinstance(shown, Run):
            figure = curves_figure(shown.history, shown.scores.get("epoch"))
        else:
            raise SettingsError(
                f"plot was called with {type(shown).__name__}",
                "a scene, a report of landfuse.check, a map (landfuse.open_map), a confusion matrix, or a run",
                "open the file first",
            )
    drawn = [axis for axis in figure.axes if axis.has_data()]
    return drawn[0] if len(drawn) == 1 else np.array(drawn)
