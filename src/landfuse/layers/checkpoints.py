"""Tensors of files that others made; nothing in a file is run."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from landfuse.errors import MissingFileError, ModelError

_BROKEN = (
    *(safetensors.SafetensorError, pickle.UnpicklingError, struct.error, RuntimeError, OSError, EOFError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError, OverflowError),
)
# What PyTorch raises on a file that was cut off or is no checkpoint: nearly anything.


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint, without running any code in it: what it holds by name.

    Raises:
        MissingFileError: if there is no such file.
        ModelError: if it is truncated or holds something else.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}", "a checkpoint", "check the path") from None
    except _BROKEN as error:
        raise ModelError(
            f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "a whole checkpoint of tensors (.pth, .pt or .safetensors)",
            "it may be truncated: fetch it again and compare its size",
        ) from None
    if not isinstance(found, dict):
        raise _no_tensors(path, found)
    return found


def tensors_of(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name; `path` is for messages.

    Raises:
        ModelError: if it holds something else.
    """
    state: Any = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and key in state:
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise _no_tensors(path, state)
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights in a checkpoint, by name; raises as the two functions above."""
    return tensors_of(read_checkpoint(path), path)


def _no_tensors(path: str | Path, found: Any) -> ModelError:
    return ModelError(
        f"{path} holds {type(found).__name__}, not named tensors",
        "a checkpoint of weights",
        "save the model's state_dict, not the model",
    )


def timm_weights(path: str | Path, name: str, encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of a backbone in a file, by timm's names.

    Where a file has other names, but the tensors of timm's model in its order, they get timm's: those of
    efficientnet_pytorch, for example.

    Args:
        path: of the file.
        name: timm's, of the backbone.
        encoder: what the weights are for; its names are looked for.

    Raises:
        MissingFileError: if there is no such file.
        ModelError: if it holds no weights of this backbone. timm itself would leave the missing ones at random.
    """
    state = read_tensors(path)
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(name).state_dict()
    if not state.keys() & whole.keys() and _outline(state) == _outline(whole):
        state = dict(zip(whole, state.values(), strict=True))
    known = {_plain(key): key for key in state}
    wanted = [key for key in encoder.state_dict() if _plain(key) in known or not key.endswith("num_batches_tracked")]
    missing = [key for key in wanted if _plain(key) not in known]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights of {name}, such as `{missing[0]}`",
            f"weights of {name}, by timm's names or in the order of its model",
            "check the encoder's name and the file",
        )
    return {known[_plain(key)]: state[known[_plain(key)]] for key in wanted}


def _outline(state: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """The kind and shape of each tensor."""
    return [(key.rpartition(".")[2], value.shape) for key, value in state.items()]


def _plain(key: str) -> str:
    return key.replace("_", ".")  # of some backbones timm joins the parts of names where only features are wanted
