"""Whether the libraries are those that the project asks for, and whether they work on this machine's device."""

import logging
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from infra.gpus import CPU, devices
from infra.settings import PROJECT
from tasks.operations.doctor.apart import first_line
from tasks.operations.doctor.finding import Finding, fault, ok, warning

_SHOWN = 6  # names in a line
_CUDA_BUILD = "torch --index-url https://download.pytorch.org/whl/cu130"  # as the Makefile names it
_NF4_ERROR = (0.01, 0.3)  # of a product of normal numbers, relative: about 0.1; none at all was not quantised


def look_at_versions() -> Iterator[Finding]:
    yield ranges(PROJECT / "pyproject.toml")
    yield pins(PROJECT / "requirements" / "run.txt")


def ranges(pyproject: Path) -> Finding:
    """Installed versions against the ranges of pyproject.toml."""
    wanted = [Requirement(one) for one in tomllib.loads(pyproject.read_text())["project"]["dependencies"]]
    wrong = []
    for one in wanted:
        installed = _installed(one.name)
        if installed is None:
            wrong.append(f"{one.name} is missing")
        elif not one.specifier.contains(installed, prereleases=True):
            wrong.append(f"{one.name} {installed} is not {one.specifier}")
    if wrong:
        return fault("versions", "; ".join(wrong), _as_pinned())
    return ok("versions", f"all {len(wanted)} that pyproject.toml names are in its ranges")


def pins(requirements: Path) -> Finding:
    """Installed versions against those that the project is tested with."""
    if not requirements.is_file():
        return warning("pins", f"there is no {requirements}", "take it from the repository to compare versions")
    lines = [re.split(r"\s#", line)[0].strip() for line in requirements.read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    pinned = [one for one in pinned if one.marker is None or one.marker.evaluate()]
    other = [
        f"{one.name} {installed or 'missing'} ({str(one.specifier).removeprefix('==')})"
        for one in pinned
        if (installed := _installed(one.name)) is None or not one.specifier.contains(installed, prereleases=True)
    ]
    if not other:
        return ok("pins", f"all {len(pinned)} are as in requirements/run.txt")
    names = ", ".join(other[:_SHOWN]) + (f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else "")
    return warning(
        "pins",
        f"{len(other)} of {len(pinned)} differ from requirements/run.txt (there in brackets): {names}",
        f"if that is not meant: {_as_pinned()}",
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    return f"{sys.executable} -m pip"


def _as_pinned() -> str:
    return f"{_pip()} install --no-deps -r {PROJECT / 'requirements' / 'run.txt'}"


# --- on the device; each in a process of its own, which frees the GPU when it ends


def torch_build() -> Iterator[Finding]:
    """Which build of PyTorch it is, whether that fits the driver, and one product of matrices on every device."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield fault("torch", f"cannot be imported: {first_line(error)}", f"{_pip()} install {_CUDA_BUILD}, or `torch`")
        return
    has_gpu, build = devices() != [CPU], torch.version.cuda
    version = f"{torch.__version__}, {f'built for CUDA {build}' if build else 'built for CPUs'}"
    if has_gpu and build is None:
        # It counts as installed, so pip would leave it as it is.
        advice = f"{_pip()} uninstall -y torch, then {_pip()} install {_CUDA_BUILD}"
        yield fault("torch", f"{version}, but this machine has a GPU", advice)
        return
    if has_gpu and not torch.cuda.is_available():
        advice = f"update the driver (nvidia-smi names the CUDA that it knows), or take the build for it: {_CUDA_BUILD}"
        yield fault("torch", f"{version}, and finds no GPU that it can use", advice)
        return
    yield ok("torch", version)
    for name in devices():
        yield multiplication(name)


def multiplication(device: str) -> Finding:
    """A build may know the driver and still hold no code for the GPU: only computing tells."""
    import torch

    try:
        numbers = torch.arange(4096, dtype=torch.float32).reshape(64, 64).remainder(7)
        product = (numbers.to(device) @ numbers.to(device)).cpu()
        right = bool((product.double() == numbers.double() @ numbers.double()).all())
        half = " and bfloat16" if device == CPU or torch.cuda.is_bf16_supported() else ", no bfloat16"
    except RuntimeError as error:
        advice = (
            f"take a build of PyTorch for it (https://pytorch.org): {_CUDA_BUILD}; or look who fills it: nvidia-smi"
        )
        return fault(f"torch on {device}", f"cannot multiply: {first_line(error)}", advice)
    if not right:
        return fault(f"torch on {device}", "multiplies wrongly", "do not trust this device; test its memory")
    return ok(f"torch on {device}", f"multiplies, float32{half}")


def four_bit() -> Iterator[Finding]:
    """bitsandbytes packs a matrix into 4 bits (NF4) on the device and multiplies by it, as method qlora does."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # its import would ask the Hub
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    advice = f"{_pip()} install --upgrade bitsandbytes; without it, methods lora, full and prompt work"
    try:
        import torch
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import quantize_4bit

        device = "cuda" if torch.cuda.is_available() else CPU
        generator = torch.Generator().manual_seed(0)
        weight, rows = torch.randn(64, 64, generator=generator), torch.randn(4, 64, generator=generator)
        packed, state = quantize_4bit(weight.to(device), quant_type="nf4")
        product = matmul_4bit(rows.to(device), packed.t(), quant_state=state).cpu()
    except Exception as error:  # noqa: BLE001 - whatever a native library makes of a device that it does not know
        yield fault("bitsandbytes", f"4-bit weights do not work: {first_line(error)}", advice)
        return
    exact = rows @ weight.T
    off = float((product - exact).norm() / exact.norm())
    if not _NF4_ERROR[0] < off < _NF4_ERROR[1]:
        yield fault("bitsandbytes", f"4-bit weights on {device} give a product that is {off:.0%} off", advice)
        return
    version = metadata.version("bitsandbytes")
    yield ok("bitsandbytes", f"{version}: packs NF4 on {device} and multiplies, {off:.0%} off as 4 bits are")
