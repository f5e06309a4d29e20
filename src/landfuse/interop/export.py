"""Bundles that open anywhere: with their frozen weights inside, and as files that need no landfuse."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ModelError, OutputError, SettingsError
from landfuse.models.placeholders import WithPlaceholders
from landfuse.reporting.provenance import without_places
from landfuse.settings import Settings


@runtime_checkable
class Foldable(Protocol):
    """A model with frozen weights in a file of their own, and trained updates of them."""

    config: Settings

    def store_all(self) -> None:
        """Lets bundles hold the frozen weights too; `config` says so."""

    def merge(self) -> tuple[list[str], list[str]]:
        """Folds updates into weights where that is the same function; names of the layers folded and of those not."""


class Export(NamedTuple):
    """What was done."""

    written: list[Path]  # the new bundle's folder, and the files
    folded: list[str]  # names of the layers whose updates were folded in
    kept: list[str]  # names of those where no single weight is the same function
    whole: bool  # whether the bundle held all its weights before


def export(
    bundle: str | Path,
    folder: str | Path | None = None,
    *,
    onnx: str | Path | None = None,
    pt2: str | Path | None = None,
    merge: bool = False,
    licence: str = "",
    overwrite: bool = False,
) -> Export:
    """Writes a bundle so that it needs no other file.

    Args:
        bundle: a bundle, or the run folder that holds it; its frozen weights must be here.
        folder: of a new bundle.
        onnx: an ONNX file, see `write_onnx`.
        pt2: a program of torch.export, see `write_pt2`.
        merge: fold low-rank updates into the weights they belong to, where the logits stay the same.
        licence: of the model, for the ONNX file.
        overwrite: replace files that landfuse did not write.

    Raises:
        BundleError: if the bundle cannot be read.
        MissingFileError: if the file of its frozen weights is not here.
        ModelError: if there is nothing to fold, or the model cannot be written as that file.
        OutputError: if something cannot be written, or the new bundle would take the old one's place.
        SettingsError: if nothing is to be written, or a file has the name of another kind.
    """
    bundle = Path(bundle)
    targets = [Path(one) for one in (folder, onnx, pt2) if one is not None]
    if not targets:
        raise SettingsError("nothing is to be written", "a bundle, an ONNX file or a program", "-o, --onnx or --pt2")
    for path, suffix in ((onnx, ".onnx"), (pt2, ".pt2")):
        if path is not None and Path(path).suffix != suffix:  # else it might take the place of the bundle's own files
            raise SettingsError(f"a file is to be named {path}", f"a name that ends in {suffix}", f"{path}{suffix}")
    if folder is not None and Path(folder).resolve() in (bundle.resolve(), (bundle / "bundle").resolve()):
        raise OutputError(
            f"the new bundle would take the place of {bundle}", "another folder", "name one by -o; the old one is kept"
        )
    classifier = load_bundle(bundle)
    model = classifier.model.network if isinstance(classifier.model, WithPlaceholders) else classifier.model
    frozen = model.frozen_reference()
    whole = frozen is None
    settings = without_places(classifier.spec.settings)  # others have no file of this machine
    if settings != classifier.spec.settings or frozen != without_places(frozen):
        if isinstance(model, Foldable):
            model.store_all()
            settings = model.config.model_dump(mode="json")
        classifier.spec = ModelSpec(classifier.spec.name, settings)
    folded: list[str] = []
    kept: list[str] = []
    if merge:
        folded, kept = model.merge() if isinstance(model, Foldable) else ([], [])
        if not folded:
            raise ModelError(
                f"`{classifier.spec.name}` of {bundle} has no low-rank update that could be folded",
                "MFNet with `finetune: lora` or `both`, not merged yet",
                "leave out --merge",
            )
    if onnx is not None or pt2 is not None:
        from landfuse.interop import onnx_export

        if pt2 is not None:  # first, as not all models can be written so
            onnx_export.write_pt2(classifier, pt2, overwrite=overwrite)
        if onnx is not None:
            onnx_export.write_onnx(classifier, onnx, licence=licence, overwrite=overwrite)
    if folder is not None:
        if isinstance(model, Foldable):
            model.store_all()
            classifier.spec = ModelSpec(classifier.spec.name, model.config.model_dump(mode="json"))
        classifier.save(folder, overwrite=overwrite)
    return Export(targets, folded, kept, whole)
