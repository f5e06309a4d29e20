"""The three algorithms: each writes the words of a `landfuse` command and shows what it made."""

from __future__ import annotations

import base64
import html
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsEditorWidgetSetup,
    QgsPalettedRasterRenderer,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputMapLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMatrix,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsProcessingUtils,
)
from qgis.PyQt.QtGui import QIcon

from .command import SETTING, CommandError, Ended, describe, model_place, program, run, scene_text, split_words

COMMAND, OPTIONS = "COMMAND", "OPTIONS"
"""Parameters that all algorithms have."""

LAYERS = ("probabilities", "confidence", "entropy", "applicability")
"""What `predict` also writes, each by the option of its name: `map_confidence.tif`."""

ANY = "All files (*)"
"""By default QGIS takes only files with a dot in their name."""

DESIGNS = ("stratified", "simple", "cluster")


def chosen_command(named: str) -> str:
    """The path of the `landfuse` command: of a parameter, else of the setting; raises a CommandError."""
    return program(named or ProcessingConfig.getSetting(SETTING) or "")


def file_of(layer: Any, what: str) -> str:
    """The file of a layer; raises a CommandError if it has none that is up to date."""
    if layer is None:
        raise CommandError(f"{what} cannot be read", "a layer of the project, or the path of a file", "check it")
    if layer.providerType() not in ("gdal", "ogr"):
        raise CommandError(
            f"{what} comes from `{layer.providerType()}`", "a layer of a file", "save it as a file first"
        )
    if layer.isEditable() and layer.isModified():
        raise CommandError(f"{what} has edits that are not saved", "a saved layer", "save its edits")
    place: str = layer.source().split("|")[0]
    return str(Path(place).absolute()) if Path(place).exists() else place  # others: GPKG:/a.gpkg:b, /vsizip/...


class AfterLoading(QgsProcessingLayerPostProcessorInterface):  # type: ignore[misc]
    """Does something with a layer of the result once it is loaded."""

    kept: list[AfterLoading] = []
    """QGIS keeps no reference to them."""

    def __init__(self, action: Callable[[Any], object]) -> None:
        super().__init__()
        self.action = action
        AfterLoading.kept = [*AfterLoading.kept[-9:], self]

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:
        self.action(layer)


def load_style(path: str, layer: Any) -> None:
    """Gives a layer the colours and names of a style file."""
    layer.loadNamedStyle(path)


def offer_classes(names: list[str], layer: Any) -> None:
    """Lets the column `reference` of a sample be chosen from the classes' names."""
    choices = {"map": [*({name: name} for name in names), {"not known": "255"}]}
    layer.setEditorWidgetSetup(layer.fields().indexOf("reference"), QgsEditorWidgetSetup("ValueMap", choices))


class Algorithm(QgsProcessingAlgorithm):  # type: ignore[misc]
    """What the three have in common."""

    identifier = title = about = subcommand = ""

    def createInstance(self) -> Algorithm:
        """Called by QGIS for each run."""
        return type(self)()

    def name(self) -> str:
        """After the provider's name, as in `landfuse:map`."""
        return self.identifier

    def displayName(self) -> str:
        """In the toolbox."""
        return self.title

    def shortHelpString(self) -> str:
        """Beside the parameters."""
        return self.about

    def icon(self) -> QIcon:
        """That of the provider."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Adds the parameters and outputs."""
        options = QgsProcessingParameterString(
            OPTIONS, f"Further options of `landfuse {self.subcommand}`", optional=True
        )
        command = QgsProcessingParameterFile(
            COMMAND, "Another `landfuse` command, or its environment", optional=True, fileFilter=ANY
        )
        for one in (options, command):
            one.setFlags(one.flags() | QgsProcessingParameterDefinition.Flag.FlagAdvanced)
            self.addParameter(one)

    def prepareAlgorithm(self, parameters: dict[str, Any], context: Any, feedback: Any) -> bool:
        """Called in the thread of the project's layers, which `prepare` may ask."""
        try:
            self.prepare(parameters, context)
        except CommandError as error:
            raise QgsProcessingException(str(error)) from None
        return True

    def prepare(self, parameters: dict[str, Any], context: Any) -> None:
        """Notes what follows from layers."""
        raise NotImplementedError

    def processAlgorithm(self, parameters: dict[str, Any], context: Any, feedback: Any) -> dict[str, Any]:
        """Called in a thread of its own."""
        try:
            self.command = chosen_command(self.parameterAsString(parameters, COMMAND, context))
            return self.work(parameters, context, feedback)
        except CommandError as error:
            raise QgsProcessingException(str(error)) from None

    def work(self, parameters: dict[str, Any], context: Any, feedback: Any) -> dict[str, Any]:
        """Runs the command and returns the outputs."""
        raise NotImplementedError

    def run_command(self, words: list[str], parameters: dict[str, Any], context: Any, feedback: Any) -> Ended:
        """Runs it with the further options that the user gives."""
        further = split_words(self.parameterAsString(parameters, OPTIONS, context))
        ended = run([self.command, self.subcommand, *words, *further], feedback)
        if ended.warning:
            feedback.reportError(ended.warning)
        return ended


class MapWithModel(Algorithm):
    """`landfuse predict`."""

    identifier, title, subcommand = "map", "Map with a model file", "predict"
    about = (
        "Maps land cover with a model of landfuse: an ONNX file (<code>landfuse export --onnx</code>), or a bundle "
        "or run folder (its <code>model.json</code>). Each modality of the model gets a layer; layers on other "
        "grids are resampled to the grid of the first. The map has the classes' colours and names, and no data "
        "where a layer has none."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Adds the parameters and outputs."""
        model = QgsProcessingParameterFile("MODEL", "Model", fileFilter="Models (*.onnx model.json);;" + ANY)
        layers = QgsProcessingParameterMatrix("LAYERS", "Layers", headers=["modality", "layer", "keys"], optional=True)
        layers.setMetadata({"widget_wrapper": {"class": "landfuse_qgis.layers_widget.LayersWrapper"}})
        self.addParameter(model)
        self.addParameter(layers)
        self.addParameter(
            QgsProcessingParameterEnum(
                "ALSO", "Also write", options=LAYERS, allowMultiple=True, defaultValue=[], optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterNumber(
                "SETS", "Also write class sets of this level, e.g. 0.9", QgsProcessingParameterNumber.Type.Double,
                optional=True, minValue=0.01, maxValue=0.999,
            )
        )  # fmt: skip
        self.addParameter(QgsProcessingParameterBoolean("POLYGONS", "Also write polygons", defaultValue=False))
        super().initAlgorithm(configuration)
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", "Map"))
        for name in (*LAYERS, "sets", "polygons"):
            self.addOutput(QgsProcessingOutputMapLayer(name.upper(), name.capitalize()))

    def prepare(self, parameters: dict[str, Any], context: Any) -> None:
        """Finds the layers' files."""
        cells = [str(cell).strip() for cell in self.parameterAsMatrix(parameters, "LAYERS", context)]
        names = cells[::3]
        if len(cells) % 3 or len(set(names)) < len(names):
            raise CommandError(
                f"the layers are {cells}", "modality, layer and keys of each modality, once", "complete it"
            )
        self.layers: dict[str, tuple[str, str, str]] = {}
        for name, place, keys in zip(names, cells[1::3], cells[2::3]):
            layer = QgsProcessingUtils.mapLayerFromString(place, context)
            path = file_of(layer, f"the layer of `{name}`, {place},")
            own = layer.dataProvider().crs().isValid()
            self.layers[name] = path, keys, "" if own else layer.crs().authid()

    def work(self, parameters: dict[str, Any], context: Any, feedback: Any) -> dict[str, Any]:
        """Maps, and removes the finished blocks of a map that is cancelled."""
        model = model_place(self.parameterAsString(parameters, "MODEL", context))
        output = Path(self.parameterAsOutputLayer(parameters, "OUTPUT", context))
        known = describe(self.command, model)
        scene = Path(QgsProcessingUtils.generateTempFilename("scene.yaml"))
        scene.write_text(scene_text(output.stem, self.layers, known), encoding="utf-8")
        also = [LAYERS[number] for number in self.parameterAsEnums(parameters, "ALSO", context)]
        words = [model, str(scene), "-o", str(output), "--json", *(f"--{name}" for name in also)]
        if parameters.get("SETS") is not None:
            also.append("sets")
            words += ["--sets", str(self.parameterAsDouble(parameters, "SETS", context))]
        words += ["--polygons"] * self.parameterAsBool(parameters, "POLYGONS", context)
        words += ["--allow-missing"] * any(
            not info["required"] and name not in self.layers for name, info in known["modalities"].items()
        )
        parts = output.with_name(output.name + ".parts")
        earlier = parts.exists()  # those of a command that was interrupted, which this one continues
        try:
            ended = self.run_command(words, parameters, context, feedback)
        except CommandError:
            if feedback.isCanceled() and not earlier:
                shutil.rmtree(parts, ignore_errors=True)
            raise
        made = {"OUTPUT": str(output)}
        made.update({name.upper(): str(output.with_name(f"{output.stem}_{name}{output.suffix}")) for name in also})
        for event in ended.events:
            if event["event"] == "polygons":
                made["POLYGONS"] = event["path"]
        if context.willLoadLayerOnCompletion(str(output)):
            for name, path in made.items():
                if name != "OUTPUT":
                    details = QgsProcessingContext.LayerDetails(Path(path).stem, context.project(), name)
                    context.addLayerToLoadOnCompletion(path, details)
                style = Path(path).with_suffix(".qml")
                if style.exists():  # which Processing does not look for
                    load = AfterLoading(partial(load_style, str(style)))
                    context.layerToLoadOnCompletionDetails(path).setPostProcessor(load)
        return made


class ReferenceSample(Algorithm):
    """`landfuse sample`."""

    identifier, title, subcommand = "sample", "Draw a reference sample", "sample"
    about = (
        "Draws points of a map at random. Look at each point in images of the time of the map, and fill in "
        "<code>reference</code> with the class that is there, without looking at the map; then <i>Accuracy and "
        "areas</i> estimates how good the whole map is. The design of the sample is in its columns: neither add nor "
        "delete points."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Adds the parameters."""
        whole = QgsProcessingParameterNumber.Type.Integer
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map"))
        self.addParameter(QgsProcessingParameterNumber("POINTS", "Points", whole, 500, minValue=2))
        self.addParameter(QgsProcessingParameterEnum("DESIGN", "Design", options=DESIGNS, defaultValue=0))
        self.addParameter(QgsProcessingParameterNumber("MINIMUM", "Points of a class at least", whole, 50, minValue=2))
        self.addParameter(QgsProcessingParameterNumber("SEED", "Seed", whole, 0, minValue=0))
        super().initAlgorithm(configuration)
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Sample", QgsProcessing.SourceType.TypeVectorPoint)
        )

    def prepare(self, parameters: dict[str, Any], context: Any) -> None:
        """Finds the map's file and its classes."""
        layer = self.parameterAsRasterLayer(parameters, "MAP", context)
        self.map = file_of(layer, "the map")
        renderer = layer.renderer()
        known = renderer.classes() if isinstance(renderer, QgsPalettedRasterRenderer) else []
        self.classes = [one.label for one in known if one.label != f"{one.value:g}"]  # without codes of no class

    def work(self, parameters: dict[str, Any], context: Any, feedback: Any) -> dict[str, Any]:
        """Draws the sample."""
        output = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        words = [self.map, "-o", output, "--design", DESIGNS[self.parameterAsEnum(parameters, "DESIGN", context)]]
        for name in ("POINTS", "MINIMUM", "SEED"):
            words += [f"--{name.lower()}", str(self.parameterAsInt(parameters, name, context))]
        self.run_command(words, parameters, context, feedback)
        if self.classes and context.willLoadLayerOnCompletion(output):
            context.layerToLoadOnCompletionDetails(output).setPostProcessor(
                AfterLoading(partial(offer_classes, self.classes))
            )
        return {"OUTPUT": output}


class AccuracyAndAreas(Algorithm):
    """`landfuse evaluate`."""

    identifier, title, subcommand = "accuracy", "Accuracy and areas", "evaluate"
    about = (
        "Estimates the accuracy of a whole map and the areas of its classes, with 95% intervals, from a reference "
        "sample whose column <code>reference</code> is filled in; or scores the map against the labels of a scene "
        "file, which say how good it is where the labels are. The report opens in the Results Viewer."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Adds the parameters and outputs."""
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", "Map"))
        self.addParameter(QgsProcessingParameterVectorLayer("SAMPLE", "Reference sample, filled in", optional=True))
        self.addParameter(
            QgsProcessingParameterFile(
                "SCENE", "Or a scene file with labels", optional=True, fileFilter="Scene file (*.yaml *.yml)"
            )
        )
        super().initAlgorithm(configuration)
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Folder for tables and pictures"))
        self.addParameter(QgsProcessingParameterFileDestination("REPORT", "Report", "HTML files (*.html)"))

    def prepare(self, parameters: dict[str, Any], context: Any) -> None:
        """Finds the files of map and sample."""
        self.map = file_of(self.parameterAsRasterLayer(parameters, "MAP", context), "the map")
        scene = self.parameterAsString(parameters, "SCENE", context)
        sample = parameters.get("SAMPLE")
        if bool(scene) == bool(sample):
            raise CommandError(
                "both a sample and a scene file" if scene else "neither a sample nor a scene file",
                "one of them",
                "choose one",
            )
        layer = self.parameterAsVectorLayer(parameters, "SAMPLE", context)
        self.truth = scene or file_of(layer, "the sample")

    def work(self, parameters: dict[str, Any], context: Any, feedback: Any) -> dict[str, Any]:
        """Scores the map, and writes the report."""
        folder = self.parameterAsString(parameters, "OUTPUT", context)
        report = self.parameterAsFileOutput(parameters, "REPORT", context)
        ended = self.run_command([self.map, self.truth, "-o", folder], parameters, context, feedback)
        pictures = [match[1] for match in (re.fullmatch(r"\w+: (.+\.png)", line) for line in ended.lines) if match]
        images = "".join(
            f'<p><img src="data:image/png;base64,{base64.b64encode(Path(one).read_bytes()).decode()}"></p>\n'
            for one in pictures
        )
        text = html.escape("\n".join(ended.lines))
        Path(report).write_text(
            f"<!DOCTYPE html>\n<meta charset=utf-8>\n<title>{html.escape(Path(self.map).stem)}</title>\n"
            f"<pre style='white-space: pre-wrap'>{text}</pre>\n{images}",
            encoding="utf-8",
        )
        return {"OUTPUT": folder, "REPORT": report}
