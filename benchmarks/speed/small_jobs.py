"""What commands take that have little to compute: the start of Python and imports, many small tiles, memory at rest.

    OMP_NUM_THREADS=1 python benchmarks/speed/small_jobs.py [start] [tiles] [memory] [--repeats 5] [--folder DIR]

`start` maps 500 x 500 px, `tiles` maps and checks 3,000 tiles of 64 px, `memory` maps 6,000 x 6,000 px by
`--memory 1GiB`; 12 + 2 bands. Each command is a process, all in turns; medians of CPU seconds and of peak memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

LANDFUSE = [sys.executable, "-m", "landfuse"]
MODELS = {"forest": {"trees": 100}, "two_branch": {"view": 3, "width": 4}}
SIDES = {"start": 500, "memory": 6000}


def scene_file(folder: Path, name: str, images: str) -> None:
    """Writes a scene of both modalities, whose labels are six classes in stripes."""
    legend = ", ".join(f"{{name: c{i}, code: {i}}}" for i in range(6))
    modalities = "".join(f"  {band}: {{path: '{images.format(band)}'}}\n" for band in ("s2", "s1"))
    text = f"name: {name}\nmodalities:\n{modalities}legend: [{legend}]\n"
    (folder / f"{name}.yaml").write_text(text)


def made(folder: Path, tiles: int) -> None:
    """Writes bundles and scenes."""
    import numpy as np
    import torch
    from flat_scene import BANDS, place

    from landfuse.bundles.description import ModelSpec
    from landfuse.rasters.geotiff_writer import GeotiffWriter
    from landfuse.rasters.windows import Window

    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in MODELS.items():
        bundle, scene = place(ModelSpec(name, settings), 500, folder)
        if name == "forest":
            window = Window(0, 0, 128, 128)
            seen = window.padded(bundle.model.halo)
            images = {band: torch.from_numpy(scene.read(band, seen))[None] for band in BANDS}
            first = scene.read("s2", window)[:1] + np.random.default_rng(0).normal(0, 0.02, window.pixels).reshape(
                1, 128, 128
            )
            target = np.digitize(first, np.quantile(first, np.arange(1, 6) / 6)).astype(np.uint8)
            bundle.model.fit([(images, torch.from_numpy(target))], 0)
        bundle.save(folder / name)
    for name, side in SIDES.items():
        place(ModelSpec("two_branch"), side, folder)
        scene_file(folder, name, f"{{}}-2048-{side}.vrt")
    if not (folder / "tiles").exists():
        for number in range(tiles):
            row, col = divmod(number, 64)
            window = Window(row * 7, col * 7, 64, 64)
            for band, count in BANDS.items():
                path, numbers = folder / "tiles" / f"{band}_{number:04}.tif", scene.read(band, window) * 1000
                with GeotiffWriter(
                    path, scene.grid.part(window), bands=count, dtype="int16", nodata=None, scale=1e-3, lasting=False
                ) as file:
                    file.write(Window(0, 0, 64, 64), np.rint(numbers).astype(np.int16))
    scene_file(folder, "tiles", "tiles/{}_{{tile}}.tif")


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MiB of a process."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        error = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {error.decode()}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", choices=["start", "tiles", "memory", "make"], default=["start", "tiles", "memory"]
    )
    parser.add_argument("--tiles", type=int, default=3000, help="how many; remove the folder to change it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/landfuse-small-jobs"))
    options = parser.parse_args()
    if options.what == ["make"]:
        made(options.folder, options.tiles)
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled: the first round does it here
    # A process starts with the peak memory of the one that starts it: this one holds no torch.
    subprocess.run(
        [sys.executable, __file__, "make", "--folder", options.folder, "--tiles", str(options.tiles)], check=True
    )
    os.chdir(options.folder)
    for what in options.what:
        commands = {"import torch": [sys.executable, "-c", "import torch"]}
        for name in MODELS:
            output = ["-o", f"{what}-{name}" + ("" if what == "tiles" else ".tif"), "--overwrite"]
            memory = ["--memory", "1GiB"] if what == "memory" else []
            commands[f"predict, {name}"] = [*LANDFUSE, "predict", name, f"{what}.yaml", *output, *memory]
        if what == "tiles":
            commands["check"] = [*LANDFUSE, "check", f"{what}.yaml"]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                found[name].append(measured(command))
        for name, values in found.items():
            seconds, peak = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"{what:7s} {name:20s} {seconds:7.2f} s CPU, peak {peak:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
