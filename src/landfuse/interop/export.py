"""Bundles that open anywhere: with their frozen weights inside, and if wanted with trained updates folded in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.errors import ModelError, OutputError
from landfuse.models.placeholders import WithPlaceholders
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

    folder: Path  # of the new bundle
    folded: list[str]  # names of the layers whose updates were folded in
    kept: list[str]  # names of those where no single weight is the same function
    whole: bool  # whether the bundle held all its weights before


def export(bundle: str | Path, folder: str | Path, *, merge: bool = False, overwrite: bool = False) -> Export:
    """Writes a bundle that needs no other file.

    Args:
        bundle: a bundle, or the run folder that holds it; its frozen weights must be here.
        folder: of the new bundle.
        merge: fold low-rank updates into the weights they belong to, where the logits stay the same.
        overwrite: replace files that are no bundle.

    Raises:
        BundleError: if the bundle cannot be read.
        MissingFileError: if the file of its frozen weights is not here.
        ModelError: if there is nothing to fold.
        OutputError: if the new bundle cannot be written, or would take the old one's place.
    """
    folder, bundle = Path(folder), Path(bundle)
    if folder.resolve() in (bundle.resolve(), (bundle / "bundle").resolve()):
        raise OutputError(
            f"the new bundle would take the place of {bundle}", "another folder", "name one by -o; the old one is kept"
        )
    classifier = load_bundle(bundle)
    model = classifier.model.network if isinstance(classifier.model, WithPlaceholders) else classifier.model
    whole = model.frozen_reference() is None
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
    if isinstance(model, Foldable):
        model.store_all()
        classifier.spec = ModelSpec(classifier.spec.name, model.config.model_dump(mode="json"))
    classifier.save(folder, overwrite=overwrite)
    return Export(folder, folded, kept, whole)
