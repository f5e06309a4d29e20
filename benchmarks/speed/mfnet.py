"""MFNet against the paper's formulation written plainly: time and peak memory, side by side in one run.

Plain: one pass per modality, windows cut (and padded) before the projections, attention matrices materialised, float32.
Both share the same weights, and the encoder's maps are compared before anything is timed.

    python benchmarks/speed/mfnet.py --encoder base --repeats 5
    python benchmarks/speed/mfnet.py --encoder large --side 1024 --device cuda --batch 1

Float32 products of frozen layers run by oneDNN where it is faster (`landfuse.kernels.linear`); the plain formulation
uses `torch.nn.functional.linear`. `--plain-products` gives both the same, so that other gains can be reported apart.

Times are medians of alternating runs; memory is the peak above the model's own, of a process each on the CPU (resident
set, Linux) and of the allocator on a GPU. Encoder weights are random.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landfuse.kernels.linear
from landfuse.kernels.attention import RelativeAttention
from landfuse.layers.adapters import AdaptedAttention, AdaptedMlp, Bottlenecks
from landfuse.models.base import Modality
from landfuse.models.mfnet import MFNet

MODALITIES = {"optical": Modality(3), "dsm": Modality(1)}
CLASSES = 6


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def perceptron(mlp: nn.Module, x: Tensor) -> Tensor:
    return linear(mlp.fc2, F.gelu(linear(mlp.fc1, x)))


def adapter(x: Tensor, weights: Bottlenecks, m: int) -> Tensor:
    hidden = F.gelu(x @ weights.down[m] + weights.down_bias[m])
    return hidden @ weights.up[m] + weights.up_bias[m]


def windows(x: Tensor, side: int) -> tuple[Tensor, int, int]:
    B, H, W, D = x.shape
    x = F.pad(x, (0, 0, 0, -W % side, 0, -H % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    cut = x.view(B, rows, side, columns, side, D).permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, D)
    return cut, rows, columns


def together(x: Tensor, rows: int, columns: int, H: int, W: int) -> Tensor:
    _, side, _, D = x.shape
    x = x.view(-1, rows, columns, side, side, D).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * side, columns * side, D)[:, :H, :W]


def attention(x: Tensor, layer: RelativeAttention) -> Tensor:
    B, H, W, D = x.shape
    qkv = (
        linear(layer.qkv, x)
        .view(B, H * W, 3, layer.heads, -1)
        .permute(2, 0, 3, 1, 4)
        .reshape(3, B * layer.heads, H * W, -1)
    )
    q, k, v = qkv.unbind(0)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    near = q.view(-1, H, W, q.shape[-1])
    place_h, place_w = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    by_row = torch.einsum("nhwd,hkd->nhwk", near, layer.rel_pos_h[place_h[:, None] - place_h[None] + H - 1])
    by_column = torch.einsum("nhwd,wkd->nhwk", near, layer.rel_pos_w[place_w[:, None] - place_w[None] + W - 1])
    logits = logits.view(-1, H, W, H, W) + by_row[..., :, None] + by_column[..., None, :]
    out = logits.view(-1, H * W, H * W).softmax(-1) @ v
    out = out.view(B, layer.heads, H, W, -1).permute(0, 2, 3, 1, 4).reshape(B, H, W, D)
    return linear(layer.proj, out)


def plain_block(block: nn.Module, xs: list[Tensor]) -> list[Tensor]:
    attn, mlp = block.attn, block.mlp
    assert isinstance(attn, AdaptedAttention)
    assert isinstance(mlp, AdaptedMlp)
    after = []
    for m, x in enumerate(xs):
        H, W = x.shape[1:3]
        y = block.norm1(x)
        if attn.inner.window:
            y, rows, columns = windows(y, attn.inner.window)
        y = attention(y, attn.inner)
        y = y + adapter(y, attn.adapters, m)
        if attn.inner.window:
            y = together(y, rows, columns, H, W)
        after.append(x + y)
    normed = [block.norm2(x) for x in after]
    updates = [adapter(x, mlp.adapters, m) for m, x in enumerate(normed)]
    own = mlp.exchange.own
    return [
        x + perceptron(mlp.inner, n) + own[m] * updates[m] + (1 - own[m]) * updates[1 - m]
        for m, (x, n) in enumerate(zip(after, normed, strict=True))
    ]


def plain_maps(model: MFNet, images: dict[str, Tensor]) -> list[Tensor]:
    vit = model.encoder.vit
    xs = [vit.patch_embed(image.expand(-1, 3, -1, -1)) + vit.pos_embed for image in images.values()]
    for block in vit.blocks:
        xs = plain_block(block, xs)
    return [vit.neck(x.permute(0, 3, 1, 2)) for x in xs]


def plain_forward(model: MFNet, images: dict[str, Tensor]) -> Tensor:
    logits = model.decoder(model.fusion([[x] for x in plain_maps(model, images)]))
    side = next(iter(images.values())).shape[-1]
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def build(encoder: str, side: int, device: str, checkpointing: bool = False, **options: object) -> MFNet:
    torch.manual_seed(0)
    options |= {"encoder": f"samvit_{encoder}_patch16", "weights": "random", "view": side}
    config = MFNet.Settings(checkpointing=checkpointing, **options)
    model = MFNet(MODALITIES, CLASSES, config)
    with torch.no_grad():
        for name, parameter in model.encoder.vit.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.02)  # timm starts them at 0
    return model.to(device)


def run_of(kind: str, model: MFNet, step: bool) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32

    def run(images: dict[str, Tensor], target: Tensor) -> Tensor:
        device = next(iter(images.values())).device.type
        with torch.set_grad_enabled(step), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = plain_forward(model, images) if kind == "plain" else model(images)
            loss = F.cross_entropy(logits.float(), target)
        if step:
            model.zero_grad(set_to_none=True)
            loss.backward()
        return logits.detach()

    return run


def batch(side: int, size: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = {
        name: torch.randn(size, modality.channels, side, side, generator=generator).to(device)
        for name, modality in MODALITIES.items()
    }
    return images, torch.randint(CLASSES, (size, side, side), generator=generator).to(device)


def seconds(run: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak(kind: str, options: argparse.Namespace, step: bool) -> float:
    """MiB above the model's own memory."""
    model = build(options.encoder, options.side, options.device, kind.startswith("checkpointed")).train(step)
    images, target = batch(options.side, options.batch, options.device)
    gc.collect()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_of(kind, model, step)(images, target)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building the model; Linux only
    before = resident("VmRSS")
    run_of(kind, model, step)(images, target)
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """MiB, of the kernel's status of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=("base", "large", "huge"), default="base")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("forward", "training step"), help="one of the two")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the CPU, on a machine that others use too")
    parser.add_argument("--plain-products", action="store_true", help="float32 products by MKL in both")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "STEP"), help="print the peak memory of one kind, in MiB")
    options = parser.parse_args()
    if options.plain_products:
        landfuse.kernels.linear._by_convolution = lambda *_: False
    if options.peak:
        print(json.dumps(peak(options.peak[0], options, options.peak[1] == "step")))
        return
    images, target = batch(options.side, options.batch, options.device)
    model = build(options.encoder, options.side, options.device).eval()
    with torch.no_grad():
        plain, ours = plain_maps(model, images), [maps[0] for maps in model.features(images)]
        difference = max(((p - o).abs().max() / p.abs().max()).item() for p, o in zip(plain, ours, strict=True))
    print(f"ViT-{options.encoder}, {options.side} px, batch {options.batch}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, {options.device}")
    print(f"largest relative difference of the encoder's maps: {difference:.1e}")
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name, step in (("forward", False), ("training step", True)):
        if options.only not in (None, name):
            continue
        model.train(step)
        kinds = ["plain", "ours", "ours bf16"] + (["checkpointed"] if step else [])
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(options.repeats + 1):
            for kind in kinds:
                model.encoder.vit.set_grad_checkpointing(kind == "checkpointed")
                run = run_of(kind, model, step)
                took = seconds(lambda run=run: run(images, target), options.device, clock)
                if repeat:  # the first one warms up
                    times[kind].append(took)
        for kind in kinds:
            ratio = statistics.median(p / t for p, t in zip(times["plain"], times[kind], strict=True))
            line = f"{name:14} {kind:14} {statistics.median(times[kind]):7.3f} s  x{ratio:5.2f} against plain"
            if not options.no_memory:
                command = [sys.executable, __file__, "--encoder", options.encoder, "--side", str(options.side)]
                command += ["--batch", str(options.batch), "--device", options.device]
                command += ["--peak", kind, "step" if step else "forward"]
                # Large blocks go back to the system when freed: what counts is memory in use, not malloc's hoard.
                measured = subprocess.run(
                    command,
                    check=True,
                    capture_output=True,
                    text=True,
                    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "500000"},
                ).stdout
                line += f"  {json.loads(measured):7.0f} MiB"
            print(line, flush=True)


if __name__ == "__main__":
    main()
