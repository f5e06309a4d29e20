"""What a training step of MFNet holds in memory, counted in bytes: for a GPU that one does not have at hand.

    python benchmarks/speed/mfnet_memory.py --encoder base --batch 4 --checkpointing

Parameters, gradients and AdamW's two moments are counted from the model. Activations are the tensors that autograd
keeps for the backward pass, each storage once, in a forward pass on the CPU under bfloat16 autocast, as a GPU would run
it. With checkpointing a block's own activations are there once more while it is computed again: those of the largest
block are added. Not counted: the CUDA context and library workspaces (some hundred MiB), short-lived tensors, and
fragmentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from landfuse.models.base import Modality
from landfuse.models.mfnet import MFNet

MODALITIES = {"optical": Modality(3), "height": Modality(1)}
CLASSES = 6


def kept(run: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass, beside the parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}  # the tensors too, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            seen.setdefault(place, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def largest_block(model: MFNet, images: dict[str, Tensor]) -> int:
    """Bytes that autograd keeps of one block of the encoder, of the block where they are most."""
    inputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, args: inputs.append((block, args[0].detach().requires_grad_())))
        for block in model.encoder.vit.blocks
    ]
    with torch.no_grad():
        model.features(images)
    for hook in hooks:
        hook.remove()
    return max(kept(lambda block=block, x=x: block(x), model) for block, x in inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=("base", "large", "huge"), default="base")
    parser.add_argument("--finetune", default="adapter")
    parser.add_argument("--view", type=int, default=256, help="px")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    config = MFNet.Settings(
        encoder=f"samvit_{options.encoder}_patch16",
        weights="random",
        view=options.view,
        finetune=options.finetune,
        checkpointing=options.checkpointing,
    )
    model = MFNet(MODALITIES, CLASSES, config).train()
    images = {
        name: torch.randn(options.batch, modality.channels, options.view, options.view)
        for name, modality in MODALITIES.items()
    }
    target = torch.zeros(options.batch, options.view, options.view, dtype=torch.uint8)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        activations = kept(lambda: model.loss(images, target), model)
        again = largest_block(model, images) if options.checkpointing else 0
    rows = {
        "frozen parameters": frozen,
        "trained parameters": trained,
        "their gradients": trained,
        "AdamW's moments": 2 * trained,
        "activations that are kept": activations,
        "a block computed again": again,
    }
    print(f"ViT-{options.encoder}, {options.finetune}, {options.view} px, batch {options.batch}")
    for name, size in (rows | {"in all": sum(rows.values())}).items():
        print(f"{name:26} {size / 2**20:8.0f} MiB")


if __name__ == "__main__":
    main()
