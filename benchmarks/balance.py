"""Whether a joint denoiser depends on one modality, and what masking, swapping and weighting modalities change.

    python benchmarks/balance.py [--scenes simulated idtrees] [--settings NAME ...] [--seeds 0 1 2 3 4]
        [--steps 1000] [--base 24] [--out runs/balance.jsonl]
    python benchmarks/balance.py --report [--out runs/balance.jsonl]

Every run appends one line to the file; runs that are in it are not repeated, so that the same command goes on. A
setting is judged on scenes or plots that its denoiser has not seen. `--report` prints means over the seeds.

- D: how far the features depend on a modality (0 to 1), `diffusion/balance.py`; balance is |ln D_h/D_l|.
- NMSE: error of the denoised image over its variance at t = 50, 150, 300, 600; excess is its ratio to that of a
  denoiser of this modality alone (the `alone` runs), less 1.
- masked: error with which a modality is read from the features while it is masked, over its variance (ridge).
- R2: of a modality read from the features (ridge), and 1 - |difference| / sum.
- OA: of a linear probe on the features, 10 labels per class.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from landfuse.diffusion.balance import Probe, swap_scores
from landfuse.diffusion.crops import Crops
from landfuse.diffusion.denoising import Denoising, run_steps
from landfuse.diffusion.noise import add_noise
from landfuse.diffusion.settings import PretrainSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.legend import UNLABELLED
from landfuse.scenes.scene import Scene
from landfuse.scenes.scene_file import read_scene_file
from landfuse.simulate.scene import simulate
from landfuse.views.store import Store

TIMES = (50, 150, 300, 600)
FEATURE_TIMES = (50, 150, 300)
NOTHING = {"h": math.nan, "l": math.nan}

SETTINGS: dict[str, dict[str, Any]] = {
    "none, gamma 1": {"kind": "none", "gamma": 1.0},
    "none, gamma 0.5": {"kind": "none", "gamma": 0.5},
    "none, gamma 0": {"kind": "none", "gamma": 0.0},
    "swap": {},
    "paper": {"kind": "paper"},
}


def scenes_of(name: str, seed: int) -> tuple[list[Scene], list[Scene], tuple[str, str]]:
    """Scenes to learn from, scenes to judge on, and the spectral and the height modality."""
    if name == "simulated":
        return [simulate(256, 256, seed)], [simulate(192, 192, seed + 1000)], ("hsi", "height")
    folder = Path(__file__).parent / "idtrees"
    scenes = list(read_scene_file(folder / "scene.yaml").scenes(("hsi", "chm")))
    held = [scene for place, scene in enumerate(scenes) if place % 5 == seed % 5]
    return [scene for scene in scenes if scene not in held], held, ("hsi", "chm")


def classes_of(name: str, labels: np.ndarray) -> np.ndarray:
    """Classes of the probe; in the simulated scene only road and building need the height."""
    if name != "simulated":
        return labels
    merged = np.full(256, UNLABELLED, np.uint8)
    merged[:8] = [0, 1, 2, 2, 3, 3, 4, 5]  # grassland = crop, shrub = trees
    return merged[labels]


@torch.inference_mode()
def errors(denoiser: TrainedDenoiser, crops: Crops, seed: int) -> dict[str, dict[str, float]]:
    """NMSE by modality and timestep, on crops and noise that are the same for every denoiser."""
    images, missing = denoiser.images(crops.draw((seed, 99), 64, False))
    alpha, found = denoiser.network.alpha, {name: {} for name in images}
    noise = {
        name: torch.randn(image.shape, generator=torch.Generator().manual_seed(seed + image.shape[1]))
        for name, image in images.items()
    }
    for t in TIMES:
        times = torch.full((64,), t)
        noisy = {name: add_noise(image, noise[name], alpha[times]) for name, image in images.items()}
        guess = denoiser.network(noisy, missing, times).noise
        for name, image in images.items():
            where = 1 - missing[name]
            a = alpha[times].view(-1, 1, 1, 1)
            wrong = ((noisy[name] - (1 - a).sqrt() * guess[name]) / a.sqrt() - image).square() * where
            mean = (image * where).sum((0, 2, 3), keepdim=True) / where.sum()
            found[name][str(t)] = float(wrong.sum() / ((image - mean).square() * where).sum())
    return found


@torch.inference_mode()
def features(denoiser: TrainedDenoiser, views: dict[str, torch.Tensor], seed: int, masked: str = "") -> torch.Tensor:
    """Features of crops, (B, D, H, W), with one modality masked or none."""
    images, missing = denoiser.images(views)
    if masked:
        missing[masked] = torch.ones_like(missing[masked])
    generator = torch.Generator().manual_seed(seed)
    alpha, found = denoiser.network.alpha, []
    noise = {name: torch.randn(image.shape[1:], generator=generator) for name, image in images.items()}
    for t in FEATURE_TIMES:
        times = torch.full((len(next(iter(images.values()))),), t)
        noisy = {n: add_noise(i, noise[n].expand_as(i), alpha[times]) for n, i in images.items()}
        levels = denoiser.network.levels(noisy, missing, times)
        side = levels[0].shape[-1]
        found += [torch.nn.functional.interpolate(level, size=(side, side), mode="bilinear") for level in levels]
    return torch.cat(found, dim=1)


def ridge(train: torch.Tensor, target: torch.Tensor, strength: float = 1e-2) -> Any:
    """Least squares with a penalty on standardised features: a function of features."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    x = torch.cat([(train - mean) / deviation, torch.ones(len(train), 1)], dim=1).double()
    penalty = strength * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ target.double())
    return lambda f: (torch.cat([(f - mean) / deviation, torch.ones(len(f), 1)], dim=1).double() @ weight).float()


def pixels(values: torch.Tensor) -> torch.Tensor:
    return values.movedim(1, -1).flatten(0, -2)


def read_outs(denoiser: TrainedDenoiser, learn: Crops, judge: Crops, seed: int) -> dict[str, Any]:
    """R2 of each modality from the features, with everything shown and with the modality masked."""
    found: dict[str, Any] = {"R2": {}, "masked": {}}
    views = [crops.draw((seed, 7), 24, False) for crops in (learn, judge)]
    images = [denoiser.images(view)[0] for view in views]
    for kind in ("R2", "masked"):
        for name in denoiser.maps:
            own, other = (pixels(features(denoiser, view, seed, name if kind == "masked" else "")) for view in views)
            truth = pixels(images[1][name])
            guess = ridge(own, pixels(images[0][name]))(other)
            wrong = float((guess - truth).square().sum() / (truth - truth.mean(0)).square().sum())
            found[kind][name] = 1 - wrong if kind == "R2" else wrong
    values = list(found["R2"].values())
    found["R2 balance"] = 1 - abs(values[0] - values[1]) / max(1e-6, abs(values[0]) + abs(values[1]))
    return found


def probe_accuracy(
    denoiser: TrainedDenoiser, name: str, learn: Sequence[Scene], judge: Sequence[Scene], seed: int
) -> float:
    """Accuracy of a linear probe: 10 labels per class of the scenes that it learnt from, all of the others."""
    tables = []
    for scenes in (learn, judge):
        store = Store(scenes, denoiser.maps, 0, 1 << 40)
        rows, classes = [], []
        for number, scene in enumerate(scenes):
            side = (scene.grid.height // 4 * 4, scene.grid.width // 4 * 4)
            mapped = next(store.grouped(torch.tensor([[number, 0, 0]])))[2]
            view = {
                n: table.view(scene.grid.height, scene.grid.width, -1).movedim(-1, 0)[None, :, : side[0], : side[1]]
                for n, table in mapped.tables.items()
            }
            labels = classes_of(name, scene.labels[: side[0], : side[1]])
            if not (labels != UNLABELLED).any():
                continue
            known = torch.from_numpy((labels != UNLABELLED).reshape(-1))
            rows.append(pixels(features(denoiser, view, seed))[known])
            classes.append(labels.reshape(-1)[known.numpy()])
        tables.append((torch.cat(rows), np.concatenate(classes)))
    (own, own_classes), (other, other_classes) = tables
    results = []
    for draw in range(5):
        rng = np.random.default_rng((seed, draw))
        kinds = np.unique(own_classes)
        chosen = np.concatenate([rng.permutation(np.flatnonzero(own_classes == kind))[:10] for kind in kinds])
        target = torch.from_numpy((own_classes[chosen][:, None] == kinds[None]).astype(np.float32))
        guess = kinds[ridge(own[chosen], target, 1e-1)(other).argmax(1).numpy()]
        results.append(float((guess == other_classes).mean()))
    return statistics.mean(results)


def one(scene: str, setting: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and judges one denoiser."""
    learn, judge, names = scenes_of(scene, seed)
    alone = setting.startswith("alone ")
    used = (names[0 if setting == "alone spectral" else 1],) if alone else names
    balance = {"kind": "none"} if alone else SETTINGS[setting]
    balance = {"warmup": options.steps // 5, **balance}
    settings = PretrainSettings(
        base=options.base,
        steps=options.steps,
        rate=options.rate,
        seed=seed,
        precision=options.precision,
        balance=balance,
    )
    everywhere = [np.ones((s.grid.height, s.grid.width), bool) for s in learn]
    torch.manual_seed(seed)
    maps = own_maps(learn, everywhere, used)
    denoiser = TrainedDenoiser.untrained(maps, dict.fromkeys(used, 1), settings.base)
    seen, unseen = (Crops(Store(scenes, maps, 64, 1 << 40), settings.crop) for scenes in (learn, judge))
    start, history = time.process_time(), []
    training = Denoising(denoiser, settings, seen)
    run_steps(training, options.steps, lambda step, row: history.append({"step": step, **row}))
    seconds = time.process_time() - start
    denoiser = training.finished()
    row: dict[str, Any] = {
        "scene": scene,
        "setting": setting,
        "seed": seed,
        "steps": options.steps,
        "base": options.base,
        "rate": options.rate,
        "seconds": round(seconds, 1),
        "NMSE": errors(denoiser, unseen, seed),
        "channels": denoiser.network.channels,
        "balance": balance,
    }
    if not alone:
        images, missing = denoiser.images(unseen.draw((seed, 5), 64, False))
        noise = {n: torch.randn(i.shape, generator=torch.Generator().manual_seed(seed)) for n, i in images.items()}
        row["end"] = {k: v for k, v in history[-1].items() if k[0] in "Drw"}
        row["D"] = swap_scores(Probe(denoiser.network, images, missing, noise))
        if not options.quick:
            row |= read_outs(denoiser, seen, unseen, seed)
            row["OA"] = probe_accuracy(denoiser, scene, learn, judge, seed)
        row["history"] = history[:: max(1, len(history) // 12)] + history[-1:]
    return row


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(path: Path) -> None:
    """Means over the seeds, setting by setting."""
    rows = rows_in(path)
    groups = sorted({(r["scene"], r["steps"], r["base"], r["rate"]) for r in rows})
    for group in groups:
        own = [r for r in rows if (r["scene"], r["steps"], r["base"], r["rate"]) == group]
        alone: dict[tuple[int, str], dict[str, float]] = {}
        for r in own:
            if r["setting"].startswith("alone "):
                alone |= {(r["seed"], name): by for name, by in r["NMSE"].items()}
        print(f"\n{group[0]}: {group[1]} steps, base {group[2]}, rate {group[3]}")
        print(
            "setting | seeds | D_h / D_l | abs ln | excess h / l | worse | mean | masked h / l | R2 h / l | index | OA"
        )
        for setting in dict.fromkeys(r["setting"] for r in own if "D" in r):
            lines = []
            for r in (r for r in own if r["setting"] == setting):
                names = list(r["D"])
                if any((r["seed"], name) not in alone for name in names):
                    continue
                excess = [
                    statistics.mean(r["NMSE"][n][str(t)] / alone[r["seed"], n][str(t)] for t in TIMES) - 1
                    for n in names
                ]
                lines.append(
                    [
                        *r["D"].values(),
                        abs(math.log(r["D"][names[0]] / r["D"][names[1]])),
                        *excess,
                        max(excess),
                        statistics.mean(excess),
                        *r.get("masked", r.get("hidden", NOTHING)).values(),
                        *r.get("R2", NOTHING).values(),
                        r.get("R2 balance", math.nan),
                        r.get("OA", math.nan),
                    ]
                )
            if lines:
                m = [statistics.mean(column) for column in zip(*lines, strict=True)]
                d = [statistics.stdev(column) if len(lines) > 1 else 0.0 for column in zip(*lines, strict=True)]
                m[5] = max(m[3], m[4])  # of the means: the mean of the maxima would count the seeds' noise
                print(
                    f"{setting} | {len(lines)} | {m[0]:.3f} / {m[1]:.3f} | {m[2]:.2f} ± {d[2]:.2f} | "
                    f"{m[3]:+.1%} / {m[4]:+.1%} | {m[5]:+.1%} | {m[6]:+.1%} ± {100 * d[6]:.1f} | "
                    f"{m[7]:.3f} / {m[8]:.3f} | {m[9]:.3f} / {m[10]:.3f} | {m[11]:.3f} | {m[12]:.3f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=["simulated", "idtrees"])
    parser.add_argument("--settings", nargs="+", default=["alone spectral", "alone height", *SETTINGS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--base", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/balance.jsonl"))
    parser.add_argument("--quick", action="store_true", help="only D and NMSE")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = ("scene", "setting", "seed", "steps", "base", "rate")
    for seed in options.seeds if not options.report else []:
        for scene in options.scenes:
            for setting in options.settings:
                job = dict(zip(known, (scene, setting, seed, options.steps, options.base, options.rate), strict=True))
                if any(all(row[key] == value for key, value in job.items()) for row in rows_in(options.out)):
                    continue
                row = one(scene, setting, seed, options)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({k: v for k, v in row.items() if k != "history"}, flush=True)
    report(options.out)


if __name__ == "__main__":
    main()
