"""Accuracy against the share of clouds, with and without SAR, of a simulated year mapped by a model of another year.

    python benchmarks/simulated/seasons.py MODEL [--every "1 month"|dates] [--clouds 0 0.25 0.5 0.75 0.9]
        [--seeds 0 1 2] [--size 128] [--set epochs=10 view=5 ...] [--out runs/seasons.jsonl]
    python benchmarks/simulated/seasons.py --report [--out runs/seasons.jsonl]

A model is fitted to 2022 of one region (25 optical dates of which clouds hide that share of the pixels, 31 of SAR) and
scored on 2023 of another. `--every` combines dates to periods, by their median and filled linearly; `dates` leaves them
as they are, with gaps. Every run appends one line to the file; runs that are in it are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from season_scene import simulate_seasons

import landfuse as lf

SENSORS = {"s2": ["s2"], "s2 + s1": ["s2", "s1"], "s1": ["s1"]}


def score(model: str, every: str, clouds: float, sensors: str, seed: int, size: int, settings: Any) -> dict[str, float]:
    dates = {} if every == "dates" else {"every": every, "fill": "linear"}
    here = simulate_seasons(size, size, 2 * seed, clouds=clouds, **dates)
    there = simulate_seasons(size, size, 2 * seed + 1, year=2023, clouds=clouds, **dates)
    classifier = lf.Classifier(model, modalities=SENSORS[sensors], seed=seed, **settings)
    classifier.fit(here, split={"kind": "blocks", "size": 16, "test": 0.1, "validation": 0.2}, progress=False)
    found = classifier.evaluate(there, progress=False).confusion
    return {name: round(float(found.scores()[name]), 4) for name in ("OA", "mF1")} | {"unmapped": int(found.unmapped)}


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def report(rows: list[dict[str, Any]]) -> None:
    clouds = sorted({row["clouds"] for row in rows})
    print("| model | dates | sensors | n | " + " | ".join(f"{share:.0%} clouds" for share in clouds) + " |")
    print("|---|---|---|---|" + "---|" * len(clouds))
    keys = ("model", "every", "sensors")
    if not clouds:
        return
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        cells = [[row["OA"] for row in own if row["clouds"] == share] for share in clouds]
        spread = [f" ± {statistics.stdev(cell):.3f}" if len(cell) > 1 else "" for cell in cells]
        words = [f"{statistics.mean(cell):.3f}{more}" if cell else "" for cell, more in zip(cells, spread, strict=True)]
        print(f"| {' | '.join(key)} | {max(map(len, cells))} | {' | '.join(words)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="forest")
    parser.add_argument("--every", default="1 month")
    parser.add_argument("--clouds", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 0.9])
    parser.add_argument("--sensors", nargs="+", choices=SENSORS, default=list(SENSORS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/seasons.jsonl"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    logging.getLogger("landfuse").setLevel(logging.ERROR)
    settings = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in args.set)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = itertools.product(args.seeds, args.clouds, args.sensors) if not args.report else ()
    for seed, clouds, sensors in runs:
        row = {"model": args.model, "every": args.every, "clouds": clouds, "sensors": sensors, "seed": seed}
        row |= {"size": args.size, "settings": settings}
        if sensors == "s1" and clouds != args.clouds[0]:  # clouds do not change it
            continue
        if any(row.items() <= known.items() for known in read(args.out)):
            continue
        row |= score(args.model, args.every, clouds, sensors, seed, args.size, settings)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    report(read(args.out))


if __name__ == "__main__":
    main()
