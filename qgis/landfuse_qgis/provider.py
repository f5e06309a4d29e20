"""The plug-in, its Processing provider, and the setting that names the `landfuse` command."""

from __future__ import annotations

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import AccuracyAndAreas, MapWithModel, ReferenceSample
from .command import SETTING


class Plugin:
    """Adds the provider to QGIS, and removes it."""

    def __init__(self) -> None:
        self.provider = Provider()

    def initProcessing(self) -> None:
        """Called by qgis_process."""
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Called by QGIS with windows."""
        self.initProcessing()

    def unload(self) -> None:
        """Called by both."""
        QgsApplication.processingRegistry().removeProvider(self.provider)


class Provider(QgsProcessingProvider):  # type: ignore[misc]
    """The algorithms of landfuse."""

    def load(self) -> bool:
        """Adds the setting to Settings > Options > Processing > Providers, and the algorithms."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        words = "Command `landfuse`, or the folder of its environment (by default the one on the path)"
        ProcessingConfig.addSetting(Setting(self.name(), SETTING, words, "", valuetype=Setting.FILE))
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Removes the setting."""
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        """Called by `refreshAlgorithms`."""
        for kind in (MapWithModel, ReferenceSample, AccuracyAndAreas):
            self.addAlgorithm(kind())

    def id(self) -> str:
        """How algorithms are called: `landfuse:map`."""
        return "landfuse"

    def name(self) -> str:
        """How the provider is called in the toolbox."""
        return "landfuse"

    def icon(self) -> QIcon:
        """Beside the name."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """Of maps."""
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Of samples."""
        return ["gpkg"]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        """Of samples."""
        return "gpkg"
