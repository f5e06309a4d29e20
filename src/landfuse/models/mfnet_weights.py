"""Weights of MFNet's encoder: found, fetched, read in the layouts they are published in, and fitted to the images.

Layouts that are read, from `.pth`/`.pt` or `.safetensors`:

- Segment Anything's own checkpoints (`image_encoder.*`, e.g. sam_vit_b_01ec64.pth),
- Segment Anything from Hugging Face transformers (`vision_encoder.*`),
- Segment Anything 2's own checkpoints (`image_encoder.trunk.*`),
- DINOv3's, Meta's own and those from Hugging Face transformers,
- timm's, of any ViT (no prefix),
- checkpoints of MFNet's authors (`image_encoder.*` with `rel_h`), see `mfnet.from_authors`.

Position embeddings and relative positions are resized here, once, to the images' size.
"""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import timm
import torch
from timm.models import eva, hieradet_sam2, vision_transformer_sam
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.download import download
from landfuse.errors import LandfuseError, MissingFileError, ModelError, OutputError
from landfuse.files import sha256_of

log = logging.getLogger(__name__)


class Reference(NamedTuple):
    """Where an encoder's weights are from."""

    name: str  # timm's name of the encoder
    address: str  # the public address, or the path of the file
    sha256: str  # of the file, hexadecimal
    path: Path  # of the file on this machine


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"

# Address and SHA-256 of the checkpoints published with Segment Anything.
PUBLISHED = {
    "samvit_base_patch16": (
        _SAM + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "samvit_large_patch16": (
        _SAM + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "samvit_huge_patch16": (
        _SAM + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


def from_file(name: str, path: str | Path) -> Reference:
    """A reference to weights in a file.

    Raises:
        MissingFileError: if there is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(
            f"there is no file {path} with weights of the encoder `{name}`",
            "a checkpoint of Segment Anything (.pth), or timm's weights (.safetensors)",
            f"check `weights`, or fetch the file from {_address(name)[0] or 'where it is published'}",
        )
    return Reference(name, str(path), sha256_of(path), path)


def by_name(name: str) -> Reference:
    """A reference to the published weights of an encoder, fetched on first use.

    They are kept in the directory that the environment variable LANDFUSE_CACHE names, or in ~/.cache/landfuse.

    Raises:
        ModelError: if no weights are published for the encoder, or the file is not the published one.
        MissingFileError: if the file is not here and cannot be fetched, naming where to put it.
    """
    address, expected = _address(name)
    if not address:
        raise ModelError(
            f"timm names no published weights for `{name}`",
            "an encoder with published weights, a file, or a random start",
            "set `weights: path/to/file`, or `weights: random`",
        )
    cache = Path(os.environ.get("LANDFUSE_CACHE") or Path.home() / ".cache" / "landfuse")
    file = address.rsplit("/", 1)[-1]
    path = cache / (file if expected else f"{timm.get_pretrained_cfg(name).hf_hub_id.split('/')[-1]}.safetensors")
    if not path.is_file():
        log.info("fetching %s to %s", address, path)
        try:
            download(address, path, sha256=expected or _hub_sha256(address), variable="LANDFUSE_CACHE")
        except OutputError:
            raise
        except (OSError, ValueError) as error:
            reason = error.found if isinstance(error, LandfuseError) else str(error)
            raise MissingFileError(
                f"the weights of `{name}` are not here, and cannot be fetched from {address} ({reason})",
                f"the file {path}",
                f"fetch {address} where there is a network and put it at {path}, or set `weights: path/to/file`",
            ) from None
    found = sha256_of(path)
    if expected and found != expected:
        raise ModelError(
            f"{path} is not the published file: its SHA-256 is {found}",
            f"SHA-256 {expected}",
            f"delete it and fetch {address} again",
        )
    return Reference(name, address, found, path)


def _address(name: str) -> tuple[str, str | None]:
    """The public address of an encoder's weights and their SHA-256, where it is known beforehand."""
    architecture, _, tag = name.partition(".")
    if architecture in PUBLISHED and tag in ("", "sa1b"):
        return PUBLISHED[architecture]
    config = timm.get_pretrained_cfg(name) if timm.is_model(architecture) else None
    if config is None or not config.hf_hub_id:
        return "", None
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    hub_id = config.hf_hub_id if "." in config.hf_hub_id else f"{config.hf_hub_id.rstrip('/')}/{name}"
    return f"{hub}/{hub_id}/resolve/main/model.safetensors", None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _hub_sha256(address: str) -> str | None:
    """The SHA-256 that the hub states for a file, in the answer before it redirects to its store."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=30) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if not 300 <= error.code < 400:
            raise
        headers = error.headers
    stated = (headers.get("X-Linked-Etag") or "").strip('"')
    return stated if re.fullmatch("[0-9a-f]{64}", stated) else None


_SAM_BY_HUGGING_FACE = (
    (".mlp.lin1.", ".mlp.fc1."),
    (".mlp.lin2.", ".mlp.fc2."),
    ("patch_embed.projection.", "patch_embed.proj."),
    ("neck.conv1.", "neck.0."),
    ("neck.layer_norm1.", "neck.1."),
    ("neck.conv2.", "neck.2."),
    ("neck.layer_norm2.", "neck.3."),
    ("layers.", "blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
)


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights of a checkpoint, by timm's names."""
    if "image_encoder.trunk.pos_embed" in state:
        found: dict[str, Tensor] = hieradet_sam2.checkpoint_filter_fn(state, prefix="image_encoder.trunk.")
        return found
    if "image_encoder.pos_embed" in state:
        found = vision_transformer_sam.checkpoint_filter_fn(state, None)
        # MFNet's authors name relative positions otherwise.
        return {re.sub(r"\.rel_([hw])$", r".rel_pos_\1", name): value for name, value in found.items()}
    if "vision_encoder.pos_embed" in state:
        found = {}
        for name, value in state.items():
            if name.startswith("vision_encoder."):
                name = name.removeprefix("vision_encoder.")
                for theirs, ours in _SAM_BY_HUGGING_FACE:
                    name = name.replace(theirs, ours)
                found[name] = value
        return found
    return _dinov3(state) or state


def fit(
    vit: nn.Module, state: dict[str, Tensor], reference: Reference | str, names: Mapping[str, str] | None = None
) -> None:
    """Puts weights into a timm ViT, and resizes its positions to the images' size.

    Args:
        vit: with or without fine-tuning modules.
        state: by timm's names.
        reference: names the source in messages.
        names: of a ViT with fine-tuning modules: name of a weight in it -> timm's.

    Raises:
        ModelError: if the weights are of another architecture.
    """
    own = vit.state_dict()
    names = names or {name: name for name in own}
    wanted = {theirs: own[name] for name, theirs in names.items()}
    prefix = int(getattr(vit, "num_prefix_tokens", 0))
    fitted, faults = {}, []
    for name, target in wanted.items():
        if name not in state:
            faults.append(f"{name} is missing")
            continue
        value = resized(name, state[name], target.shape, prefix)
        if value.shape != target.shape:
            faults.append(f"{name} is {tuple(state[name].shape)} instead of {tuple(target.shape)}")
        fitted[name] = value
    faults += [f"{name} is more than the encoder has" for name in state if _more_blocks(name, wanted)]
    if faults:
        where, name = (reference.path, reference.name) if isinstance(reference, Reference) else (reference, "encoder")
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        alike = next((sam for sam in PUBLISHED if _SIZES[sam] == _size(state)), None)
        raise ModelError(
            f"{where} holds weights of another architecture ({_described(state)}): {shown}",
            f"weights of `{name}` ({_described(wanted)})",
            f"set `encoder: {alike}`, or another file" if alike else "check `encoder` and `weights`",
        )
    vit.load_state_dict(own | {name: fitted[theirs] for name, theirs in names.items()})


def resized(name: str, value: Tensor, shape: torch.Size, prefix: int) -> Tensor:
    """Position embeddings at another size of images: absolute ones bicubic, relative ones linear.

    Args:
        name: timm's name of the weight; anything but positions is returned as it is.
        value: as in the file.
        shape: as wanted.
        prefix: class and register tokens before those of the image.
    """
    if value.shape == shape:
        return value
    if name.endswith((".rel_pos_h", ".rel_pos_w")) and value.ndim == 2 and value.shape[1] == shape[1]:
        return F.interpolate(value.T[None].float(), size=shape[0], mode="linear")[0].T.to(value.dtype)
    if name == "pos_embed" and value.ndim == 4 == len(shape) and value.shape[3] == shape[3]:
        return _bicubic(value, shape[1], shape[2])
    if name == "pos_embed" and value.ndim == 3 == len(shape) and value.shape[2] == shape[2]:
        # Some ViTs give their class token a position and some do not.
        kept = prefix if (shape[1] - prefix) == int((shape[1] - prefix) ** 0.5) ** 2 else 0
        old, new = int((value.shape[1] - kept) ** 0.5), int((shape[1] - kept) ** 0.5)
        if old * old + kept == value.shape[1]:
            grid = _bicubic(value[:, kept:].reshape(1, old, old, -1), new, new).reshape(1, new * new, -1)
            return torch.cat((value[:, :kept], grid), dim=1)
    return value


def _bicubic(grid: Tensor, height: int, width: int) -> Tensor:
    """(1, H, W, D) -> (1, height, width, D), bicubic without antialiasing, as Segment Anything's fine-tunings do."""
    resized = F.interpolate(grid.permute(0, 3, 1, 2).float(), size=(height, width), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(grid.dtype)


_SIZES = {"samvit_base_patch16": (768, 12), "samvit_large_patch16": (1024, 24), "samvit_huge_patch16": (1280, 32)}


def _size(state: dict[str, Tensor]) -> tuple[int, int]:
    """Width and number of blocks; 0 where there are none."""
    embedding = state.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return (embedding.shape[0] if embedding is not None else 0, len(blocks))


def _described(state: dict[str, Tensor]) -> str:
    width, blocks = _size(state)
    return f"{blocks} blocks, {width} wide at the patches" if width and blocks else "no Vision Transformer"


def _more_blocks(name: str, wanted: dict[str, Tensor]) -> bool:
    part = r"blocks\.\d+\.((attn\.(qkv|proj)|mlp\.fc\d|norm\d)\.weight|attn\.[qv]_bias)"
    return bool(re.match(part, name)) and name not in wanted


_HUGGING_FACE = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)


def _dinov3(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The same weights by timm's names; None where they are no DINOv3 in the layout of Meta or of Hugging Face."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    if "storage_tokens" in state:
        # timm's filter drops biases that its model lacks without a word: this stand-in has all of them.
        embedding = SimpleNamespace(proj=SimpleNamespace(weight=state.get("patch_embed.proj.weight")))
        every = SimpleNamespace(patch_embed=embedding, pos_embed=None, get_parameter=lambda name: None)
        return _without_zeros(eva.checkpoint_filter_fn(state, every))
    if "embeddings.register_tokens" in state and "layer.0.attention.q_proj.weight" in state:
        gated = "layer.0.mlp.gate_proj.weight" in state
        mlp = (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1."), (r"\.mlp\.gate_proj\.", ".mlp.fc1_g.")
        renamed = {}
        for name, value in state.items():
            for pattern, new in (*_HUGGING_FACE, *mlp):
                name = re.sub(pattern, new, name)
            renamed[name] = value
        return _without_zeros(_fused(renamed))
    return None


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three projections as one."""
    result = {}
    for name, value in state.items():
        found = re.fullmatch(r"(.*\.attn\.)([qkv])\.(weight|bias)", name)
        if not found:
            result[name] = value
        elif found[3] == "bias" and found[2] != "k":
            result[f"{found[1]}{found[2]}_bias"] = value
        elif found[2] == "q" and found[3] == "weight":
            parts = [state[f"{found[1]}{part}.weight"] for part in "qkv"]
            result[f"{found[1]}qkv.weight"] = torch.cat(parts)
    return result


def _without_zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases of q and v where all of them are zero, as timm's models without them need it."""
    biases = [name for name in state if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(state[name].any() for name in biases):
        return state
    return {name: value for name, value in state.items() if name not in set(biases)}
