"""Measures landfuse on one NVIDIA GPU; see README.md beside this file.

    python benchmarks/gpu/measure.py                          # everything
    python benchmarks/gpu/measure.py --parts scan networks --seconds 160
    python benchmarks/gpu/measure.py --dry-run                # tiny shapes on a CPU: does everything run?

Exit code 0: all that was begun was measured; 1: there were faults; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

PARTS = ("ceilings", "parity", "scan", "networks", "mapping", "p1")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="run every part on a CPU, with tiny shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="gets results.jsonl and tables.md")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no measurement begins")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1), help="processes for parity")
    return parser.parse_args()


def measure(chosen: argparse.Namespace) -> int:
    """Runs the parts; the exit code."""
    import ceilings
    import mapping_speed
    import networks
    import same_bytes
    import scan_parity
    import scan_speed
    from device import Device
    from record import Record, machine
    from workers import Workers

    device = Device("cpu" if chosen.dry_run else "cuda")
    modules = (ceilings, scan_parity, scan_speed, networks, mapping_speed, same_bytes)
    not_on_a_cpu = {module.PART: module.NOT_ON_A_CPU for module in modules}
    parts = [part for part in PARTS if part in chosen.parts]
    record = Record(chosen.out, device.dry, chosen.seconds)
    facts = machine(device.name)
    record.write("machine", "machine", facts)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Workers(0 if device.dry else chosen.workers) as workers:
        runs = {
            "ceilings": lambda: found.update(ceilings.measure(record, device)),
            "parity": lambda: scan_parity.measure(record, device, workers),
            "scan": lambda: scan_speed.measure(record, device, found),
            "networks": lambda: networks.measure(record, device, found),
            "mapping": lambda: mapping_speed.measure(record, device, Path(folder)),
            "p1": lambda: same_bytes.measure(record, device, Path(folder)),
        }
        if "scan" in parts:
            scan_speed.prepare(record, device, workers)
        for number, part in enumerate(parts):
            if record.ended:
                break
            if part != "parity":
                workers.close()
            if device.dry:
                record.not_measured(part, not_on_a_cpu[part])
            with record.measurement(part, "the whole part") as begun:
                if begun:
                    runs[part]()
            if not device.answers():
                for lost in parts[number + 1 :]:
                    record.fault(lost, "the whole part", f"the GPU does not answer this process since {part}")
                break
    record.close(parts)
    print(f"{record.faults} faults; results in {chosen.out}")
    return 1 if record.faults else 0


def main() -> None:
    chosen = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as landfuse sets it where it is imported first
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if chosen.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # runs the scan's kernels on a CPU where they are asked for
        os.environ["LANDFUSE_SCAN"] = "torch"  # and nowhere else: it takes minutes for a network
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        print(
            "There is no CUDA GPU here: nothing was measured. With --dry-run all parts run on a CPU.", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(measure(chosen))


if __name__ == "__main__":
    main()
