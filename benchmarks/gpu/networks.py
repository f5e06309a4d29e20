"""Forward passes and training steps of the networks at their papers' sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from device import Device, difference
from landfuse_parts import (
    SCAN_KERNELS,
    Bdgf,
    FusionModel,
    Modality,
    RefNet,
    Replayed,
    TwoBranch,
    rounded_once,
    with_fewer_kernels,
)
from plain_attention import written_plainly
from record import Record
from scan_inputs import TYPES
from speed_parts import CLASSES, MFNET_MODALITIES, build_mfnet
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

PART = "networks"
NOT_ON_A_CPU = "launches, GPU busy time, peak memory, bfloat16, and the papers' sizes: small networks and batches ran"
PATCH = {"hsi": Modality(30), "lidar": Modality(2)}
GUIDED = PATCH | {f"diffusion_{i}": Modality(3 * width) for i, width in enumerate((64, 128, 128), start=1)}
SATELLITES = {"s2": Modality(13), "s1": Modality(2)}


@dataclass(frozen=True)
class Case:
    """A network, its batch, and how its attention is written."""

    model: str
    kind: str
    batch: int
    view: int
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False

    @property
    def name(self) -> str:
        words = [self.model, self.options.get("encoder", ""), self.options.get("finetune", "")]
        words += [f"{self.batch} x {self.view} px", self.kind, "plain attention" if self.plain else ""]
        return " ".join(word for word in words if word)


def cases(dry: bool) -> list[Case]:
    """The ones most worth having first."""
    if dry:
        refnet = Case("refnet", "f32", 2, 32, {"encoder": "resnet18", "width": 16})
        tiny = {"depth": 2, "embed_dim": 32, "num_heads": 2, "global_attn_indexes": (1,)}
        mfnet = Case("mfnet", "f32", 2, 32, {"encoder": "base", "finetune": "adapter", "encoder_options": tiny})
        patches = [Case(name, "f32", 8, 11) for name in ("bdgf", "two_branch")]
        return [refnet, *patches, mfnet, replace(mfnet, plain=True)]
    refnet = Case("refnet", "bf16", 8, 256, {"encoder": "resnet50"})
    bdgf, two_branch = Case("bdgf", "bf16", 1024, 11), Case("two_branch", "bf16", 1024, 11)
    base = Case("mfnet", "bf16", 1, 1024, {"encoder": "base", "finetune": "adapter"})
    large = replace(base, options={"encoder": "large", "finetune": "adapter"})
    small = replace(base, batch=16, view=256)
    lora = replace(base, options={"encoder": "base", "finetune": "lora"})
    return [
        *(replace(case, kind=kind) for case in (refnet, bdgf, two_branch) for kind in ("bf16", "f32")),
        base,
        replace(base, kind="f32"),
        small,
        large,
        replace(large, batch=4),
        *(replace(case, plain=True) for case in (base, large, small, replace(base, kind="f32"))),
        replace(base, batch=2),
        replace(large, batch=2),
        replace(large, kind="f32"),
        lora,
        replace(lora, options={"encoder": "large", "finetune": "lora"}),
        replace(large, batch=16, view=256),
        replace(small, kind="f32"),
        replace(lora, batch=16, view=256),
        replace(refnet, view=512),
    ]


def build(case: Case, device: str) -> tuple[FusionModel, Mapping[str, Modality]]:
    torch.manual_seed(0)
    if case.model == "mfnet":
        return build_mfnet(side=case.view, device=device, **case.options), MFNET_MODALITIES
    if case.model == "refnet":
        settings = RefNet.Settings(view=case.view, drop_path=0.0, **case.options)
        return RefNet(SATELLITES, CLASSES, settings), SATELLITES
    if case.model == "two_branch":
        return TwoBranch(PATCH, CLASSES, TwoBranch.Settings(view=case.view)), PATCH
    return Bdgf(GUIDED, CLASSES, Bdgf.Settings(view=case.view)), GUIDED


Made = tuple[FusionModel, dict[str, Tensor], Tensor]


def made(case: Case, device: str) -> Made:
    """The network on the device, a batch of random images, and targets."""
    try:
        with torch.device(device):  # random weights are drawn much faster there
            model, modalities = build(case, device)
    except RuntimeError:  # something in it was made on the CPU
        model, modalities = build(case, device)
    return model.to(device), *batch_of(case, model, modalities, device)


def batch_of(
    case: Case, model: FusionModel, modalities: Mapping[str, Modality], device: str
) -> tuple[dict[str, Tensor], Tensor]:
    images = {
        name: torch.randn(case.batch, m.channels, model.view * m.zoom, model.view * m.zoom)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for name, m in modalities.items()
    }
    target = torch.randint(CLASSES, (case.batch, model.core, model.core), dtype=torch.uint8).to(device)
    return images, target


def jobs(
    case: Case, device: str, parts: Made | None = None, mode: Callable[[], Any] = torch.inference_mode
) -> dict[str, Callable[[], object]]:
    """A forward pass without gradients, in this mode, and a training step with AdamW; of what `made` returned."""
    model, images, target = parts or made(case, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=device == "cuda")
    half = TYPES[case.kind] == torch.bfloat16
    if device == "cuda" and parts is None:
        model.to(memory_format=torch.channels_last)
    mapping = with_fewer_kernels(model) if device == "cuda" and not case.plain else model  # as the predictor has it
    mapping = rounded_once(mapping) if half else mapping

    def forward() -> object:
        mapping.eval()
        with mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            return mapping(images)

    def step() -> object:
        model.train()
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model.loss(images, target)["loss"]
        loss.backward()
        return optimiser.step()

    replayed = Replayed(mapping)

    def graph() -> object:
        mapping.eval()
        with mode(), torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False):
            return replayed(images)

    return {"forward": forward, **({"forward as a CUDA graph": graph} if device == "cuda" else {}), "step": step}


def kernels(job: Callable[[], object], device: Device) -> dict[str, Any]:
    """Launches and busy milliseconds of the GPU in one call, the scan's and attention's shares, and the longest."""
    job()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        wall = device.once(job)
    found = [
        (event.key, event.self_device_time_total / 1e3, event.count)
        for event in profiled.key_averages()
        if event.self_device_time_total > 0 and "CUDA" in str(event.device_type)
    ]
    busy = sum(ms for _, ms, _ in found) or float("nan")
    words = ("fmha", "flash", "attention", "softmax")
    attention = sum(ms for key, ms, _ in found if any(word in key.lower() for word in words))
    longest = sorted(found, key=lambda row: -row[1])[:6]
    return {
        "gpu_busy_ms": busy,
        "launches": sum(count for _, _, count in found),
        "scan_share": sum(ms for key, ms, _ in found if key in SCAN_KERNELS) / busy,
        "attention_share": attention / busy,
        "kernels": {"profiled_ms": wall, "longest": [(key[:80], round(ms, 3), n) for key, ms, n in longest]},
    }


def measure_one(record: Record, device: Device, case: Case, ceilings: Mapping[str, float]) -> None:
    """Records the jobs of a network."""
    operations = 0
    for what, job in jobs(case, device.name).items():
        for _ in range(0 if device.dry else 6):  # compiles, and captures the graph
            job()
        with FlopCounterMode(display=False) as counter:  # what custom kernels do is not counted
            job()
        operations = counter.get_total_flops() or operations  # a graph's are those of the pass before
        took = device.milliseconds(job)
        rate = operations / took / 1e9
        peak = device.peak(job)
        profiled = {} if device.dry else kernels(job, device)
        record.add(
            PART,
            f"{case.name}, {what}",
            ms=took,
            per_s=1e3 * case.batch / took,
            TFLOP_per_s=rate,
            of_ceiling=rate / ceilings[case.kind] if case.kind in ceilings else None,
            peak_GiB=peak and peak[0],
            times_busy=took / profiled["gpu_busy_ms"] if profiled else None,
            **profiled,
        )


def compare_attention(record: Record, device: Device, case: Case) -> None:
    """Records how far the encoder's maps of ours and of plain attention are apart; the reference is plain float32."""
    model, images, _ = made(case, device.name)
    model.eval()
    with torch.inference_mode():
        with written_plainly():
            plain = model.features(images)[0][0]
        found = {"f32": difference(model.features(images)[0][0], plain)}
        with torch.autocast(device.name, torch.bfloat16):
            found["bf16"] = difference(model.features(images)[0][0], plain)
            with written_plainly():
                found["plain_bf16"] = difference(model.features(images)[0][0], plain)
    record.add(PART, f"{case.name}: difference from plain attention", **found)


def measure(record: Record, device: Device, ceilings: Mapping[str, float]) -> None:
    """Records all networks."""
    todo = cases(device.dry)
    for case in todo:
        with record.measurement(PART, case.name) as begun:
            if begun:
                with written_plainly() if case.plain else nullcontext():
                    measure_one(record, device, case, ceilings)
        device.release()
    compared = {str(c.options): c for c in todo if c.model == "mfnet" and c.plain and (device.dry or c.view > 256)}
    for case in compared.values():
        case = replace(case, plain=False, kind="f32")
        with record.measurement(PART, f"{case.name}: difference from plain attention") as begun:
            if begun:
                compare_attention(record, device, case)
        device.release()
