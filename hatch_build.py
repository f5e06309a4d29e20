"""Builds the compiled kernels into the wheel (or into the source tree, for an editable install).

The system's C++ compiler is used if there is a fit one, else zig's, which pip fetches as the build requirement
`ziglang`. Nothing here may stop an installation: without the kernel landfuse gives the same numbers, slower on a CPU.

Environment:
    LANDFUSE_KERNEL=none       build no kernel: a pure-Python wheel.
    LANDFUSE_KERNEL=TARGET     build for one of `TARGETS` with zig, from any machine: this makes the released wheels.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LOG = logging.getLogger("landfuse.build")

NATIVE = Path("src") / "landfuse" / "kernels" / "native"
ZIG = "ziglang>=0.17,<0.18"  # 0.17 was tried; zig changes its command line between minor versions

# No flag may allow the compiler to reorder sums or to ignore NaN (-ffast-math): the kernel relies on both.
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
FLAGS += ["-g0", "-Wno-psabi", "-Wno-ignored-attributes"]
# Per source, the flags of the system's compiler and of zig (which wants a processor's name).
WIDE = "-mprefer-vector-width=512"
# Of one source, with any compiler: two roundings as in NumPy, where a fused multiply-add rounds once.
FURTHER = {"windows.cpp": ["-ffp-contract=off"]}
INSTRUCTION_SETS = {
    "kernels_avx512.cpp": (["-march=x86-64-v4", WIDE], ["-mcpu=x86_64_v4", WIDE]),
    "kernels_avx2.cpp": (["-march=x86-64-v3"], ["-mcpu=x86_64_v3"]),
}

TRIAL = """
#include <thread>
typedef float F __attribute__((vector_size(16)));
F swap(F a, F b) { return __builtin_shufflevector(a, b, 0, 4, 2, 6); }
F pick(F a, F b) { return a > b ? a : b; }
"""


class Target(NamedTuple):
    """A platform to build for with zig."""

    triple: str
    library: str
    tag: str


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "landfuse_scan.so", "manylinux_2_17_x86_64"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "landfuse_scan.so", "manylinux_2_17_aarch64"),
    "macos-x86_64": Target("x86_64-macos.11.0", "landfuse_scan.dylib", "macosx_11_0_x86_64"),
    "macos-arm64": Target("aarch64-macos.11.0", "landfuse_scan.dylib", "macosx_11_0_arm64"),
    "windows-x86_64": Target("x86_64-windows-gnu", "landfuse_scan.dll", "win_amd64"),
}


class KernelHook(BuildHookInterface):
    """Compiles the kernel before the wheel's files are collected."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Zig, where it is needed."""
        wanted = os.environ.get("LANDFUSE_KERNEL", "")
        if wanted == "none" or (not wanted and system_compiler()):
            return []
        return [ZIG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the library and marks the wheel as one for its platform; without a library the wheel stays pure.

        The benchmarks' YAML files go into the wheel too: an installed landfuse knows the field's places by name.
        """
        wanted = os.environ.get("LANDFUSE_KERNEL", "")
        if self.target_name != "wheel":
            return
        if version != "editable":  # an editable install finds them in the checkout
            for path in sorted((Path(self.root) / "benchmarks").glob("*/*.yaml")):
                build_data["force_include"][str(path)] = f"landfuse/benchmarks/{path.parent.name}/{path.name}"
        if wanted == "none":
            return
        folder = Path(self.root) / NATIVE
        try:
            for old in folder.glob("landfuse_scan.*"):
                old.unlink()
            library, tag = build(folder, wanted)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip()
            self.app.display_warning(
                f"landfuse: the kernels were not compiled, so PyTorch and NumPy will serve on CPUs: {detail[-2000:]}"
            )
            return
        build_data["artifacts"].append(f"/{(NATIVE / library).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"


def build(folder: Path, wanted: str) -> tuple[str, str]:
    """Compiles the sources in `folder` into a library beside them.

    Args:
        folder: holds the sources.
        wanted: one of `TARGETS`, or empty for this machine.

    Returns:
        The library's name and the platform part of the wheel's tag.

    Raises:
        ValueError: for an unknown target, or where there is no compiler.
        subprocess.SubprocessError: if compiling fails.
    """
    if wanted and wanted not in TARGETS:
        raise ValueError(f"LANDFUSE_KERNEL={wanted} is none of {', '.join(TARGETS)}, none")
    compiler = None if wanted else system_compiler()
    if compiler:
        suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
        target = Target("", f"landfuse_scan.{suffix}", _own_tag())
        command, is_x86 = [compiler], platform.machine().lower() in ("x86_64", "amd64")
    else:
        if importlib.util.find_spec("ziglang") is None:
            raise ValueError("there is neither a C++ compiler nor zig")
        target = TARGETS[wanted or _own_target()]
        command = [sys.executable, "-m", "ziglang", "c++", "-target", target.triple, "-fno-sanitize=undefined"]
        is_x86 = target.triple.startswith("x86_64")
    if target.library.endswith("dll"):
        position_independent: list[str] = []
    else:
        position_independent = ["-fPIC"]
    sources = [path for path in sorted(folder.glob("*.cpp")) if is_x86 or path.name not in INSTRUCTION_SETS]
    with tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{path.stem}.o") for path in sources]

        def compile_one(source: Path, out: str) -> None:
            system, zig = INSTRUCTION_SETS.get(source.name, ([], []))
            own = [*FURTHER.get(source.name, []), *(system if compiler else zig)]
            _run([*command, *FLAGS, *position_independent, *own, "-c", str(source), "-o", out])

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        out = str(Path(scratch) / target.library)
        link = [*command, "-shared", "-o", out, *objects]
        if not compiler:
            _run([*link, "-s"])
        elif sys.platform == "linux":
            try:  # without the runtime inside, the library would need this machine's version of it or a newer one
                _run([*link, "-s", "-pthread", "-static-libstdc++", "-static-libgcc"])
            except subprocess.CalledProcessError:
                _run([*link, "-s", "-pthread"])
        else:
            _run(link)
        part = folder / f"{target.library}.part"
        shutil.copyfile(out, part)
        part.replace(folder / target.library)  # at once: a running process may have the old one mapped
    return target.library, target.tag


def system_compiler() -> str | None:
    """A C++ compiler that knows the vector extensions which the kernel is written in (GCC 12 or clang), or None."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            trial = [path, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
            if subprocess.run(trial, input=TRIAL, capture_output=True, text=True, check=False).returncode == 0:
                return path
    return None


def _run(command: list[str]) -> None:
    LOG.info("%s", " ".join(command))
    subprocess.run(command, check=True, capture_output=True, text=True)


def _own_target() -> str:
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "macos" else "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if f"{system}-{machine}" not in TARGETS:
        raise ValueError(f"there is no target for {system} on {machine}")
    return f"{system}-{machine}"


def _own_tag() -> str:
    if sys.platform == "darwin":
        return f"macosx_{(platform.mac_ver()[0].split('.') or ['11'])[0]}_0_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
