"""In the dialog of *Map with a model file*: an input for each modality of the model that is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from processing.gui.wrappers import DIALOG_STANDARD, WidgetWrapper
from qgis.core import QgsProcessingContext, QgsProcessingParameterRasterLayer, QgsProject
from qgis.gui import QgsProcessingMapLayerComboBox
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QApplication, QGridLayout, QLabel, QLineEdit, QWidget

from .algorithms import chosen_command
from .command import CommandError, describe, model_place

FILES = ("model.onnx", "model.json", "bundle/model.json")
"""By which a folder is known to hold a model."""


class LayersWrapper(WidgetWrapper):  # type: ignore[misc]
    """Shows, once a model is chosen, a layer box and a line of further keys for each of its modalities.

    Its value is a list: modality, layer, keys, modality, ... In the modeler and in batches it is such a list as text.
    """

    def createWidget(self) -> QWidget:
        """Called by the constructor."""
        self.rows: dict[str, tuple[Any, QLineEdit]] = {}
        self.given: list[str] = []
        self.model = ""
        if self.dialogType != DIALOG_STANDARD:
            line = QLineEdit()
            line.setPlaceholderText("modality,layer,keys,modality,layer,keys")
            return line
        box = QWidget()
        self.grid = QGridLayout(box)
        self.grid.setContentsMargins(0, 0, 0, 0)
        self.note = QLabel("Choose a model file; then each of its modalities gets a layer here.")
        self.note.setWordWrap(True)
        self.grid.addWidget(self.note, 0, 0, 1, 2)
        return box

    def createLabel(self) -> QLabel:
        """Called by the constructor. Each modality says itself whether it is optional."""
        return QLabel(self.parameterDefinition().description())

    def postInitialize(self, wrappers: list[Any]) -> None:
        """Called by the dialog with those of all parameters."""
        self.others = {one.parameterDefinition().name(): one for one in wrappers}
        if self.dialogType == DIALOG_STANDARD:
            for name in ("MODEL", "COMMAND"):
                self.others[name].widgetValueHasChanged.connect(self.show_modalities)
            self.show_modalities()

    def show_modalities(self, *_: Any) -> None:
        """Asks landfuse for the modalities of the model that is chosen now."""
        model = str(self.others["MODEL"].parameterValue() or "")
        if model == self.model or not (Path(model).is_file() or any(Path(model, name).is_file() for name in FILES)):
            return
        self.given, self.model = self.value(), model
        for place in range(1, self.grid.count()):
            self.grid.itemAt(place).widget().deleteLater()
        self.rows = {}
        QApplication.setOverrideCursor(Qt.CursorShape.WaitCursor)
        try:
            command = chosen_command(str(self.others["COMMAND"].parameterValue() or ""))
            known = describe(command, model_place(model))
        except CommandError as error:
            self.note.setText(str(error))
            self.model = ""  # so that it is asked for again
            return
        finally:
            QApplication.restoreOverrideCursor()
        self.note.setText("A layer per modality; at the right further keys of a scene file, e.g. bands: [1, 2, 3]")
        for name, info in known["modalities"].items():
            self.add_row(name, info)
        self.setValue(self.given)

    def add_row(self, name: str, info: dict[str, Any]) -> None:
        """An input for one modality."""
        names = info["names"] or [f"{one:g} nm" for one in info["wavelengths"]]
        named = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if len(set(names)) == len(names) else ""
        words = [f"{info['bands']} band{'s' * (info['bands'] > 1)}", info["units"], named]
        optional = "" if info["required"] else " [optional]"
        label = QLabel(f"<b>{name}</b>{optional}: {'; '.join(filter(None, words))}")
        label.setWordWrap(True)
        layer = QgsProcessingMapLayerComboBox(QgsProcessingParameterRasterLayer(name, name, optional=True))
        layer.setWidgetContext(self.widgetContext())
        keys = QLineEdit()
        keys.setPlaceholderText("keys")
        keys.setToolTip(
            "How the layer is read: keys of a modality in a scene file, e.g. bands: [1, 2, 3], scale: 0.0001"
        )
        row = self.grid.rowCount()
        self.grid.addWidget(label, row, 0, 1, 2)
        self.grid.addWidget(layer, row + 1, 0)
        self.grid.addWidget(keys, row + 1, 1)
        self.grid.setColumnStretch(0, 3)
        self.grid.setColumnStretch(1, 1)
        self.rows[name] = layer, keys
        layer.valueChanged.connect(lambda: self.widgetValueHasChanged.emit(self))

    def value(self) -> Any:
        """Modality, layer, keys, modality, ...; modalities without a layer are left out."""
        if self.dialogType != DIALOG_STANDARD:
            return self.widget.text()
        found: list[str] = []
        for name, (box, keys) in self.rows.items():
            layer = QgsProject.instance().mapLayer(box.value() or "")
            place = layer.source() if layer is not None else box.value()  # ids are of this project alone
            found += [name, place, keys.text()] if place else []
        return found if self.rows else self.given

    def setValue(self, value: Any) -> None:
        """Takes it from the history, for example."""
        if self.dialogType != DIALOG_STANDARD:
            self.widget.setText(value if isinstance(value, str) else ",".join(map(str, value or [])))
            return
        self.given = value.split(",") if isinstance(value, str) else list(value or [])
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        for name, layer, keys in zip(*(self.given[start::3] for start in range(3))):
            if name in self.rows:
                self.rows[name][0].setValue(layer, context)
                self.rows[name][1].setText(keys)
