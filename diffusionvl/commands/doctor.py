"""`diffusionvl doctor`: prints versions, devices, kernels, and what is missing for what."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement

from .command_line import Parser

# What the extras, and packages besides them, are needed for.
EXTRAS = {
    "train": "LoRA, DeepSpeed, parquet and Hugging Face datasets, wandb",
    "eval": "benchmarks in lmms-eval, charts",
    "video": "videos",
    "constrain": "answers by a JSON schema, a grammar or choices",
    "flash": "FlashAttention of AR models",
}
OTHERS = {
    "bitsandbytes": "QLoRA (quantization: 4bit), on an NVIDIA GPU",
    "tensorboard": "report_to: tensorboard",
    "trackio": "report_to: trackio",
    "triton": "FlexAttention and torch.compile on a GPU",
}
WIDTH = 22


def main(argv: list[str] | None = None) -> int:
    """Prints the findings.

    Returns:
        0, or 1 if a package that everything needs is missing or of another version, or a kernel does not work.
    """
    parser = Parser(prog="diffusionvl doctor", description="Print versions, devices, kernels and what is missing.")
    return parser.run(lambda arguments: _print_findings(), argv)


def _print_findings() -> int:
    broken = 0
    for title, lines in (
        ("versions", versions()),
        ("devices", devices()),
        ("kernels", kernels()),
        ("extras", extras()),
    ):
        print(title)
        for name, found, fine in lines:
            print(f"  {name:{WIDTH}}{found}")
            broken += not fine
    return min(broken, 1)


Line = tuple[str, str, bool]  # name, finding, whether all is well


def versions() -> Iterator[Line]:
    """Python, this package, and the packages that it always needs."""
    yield "python", f"{platform.python_version()}, {platform.platform()}", True
    yield "diffusionvl", importlib.metadata.version("diffusionvl"), True
    for requirement in _requirements(None):
        found, fine = _installed(requirement)
        yield requirement.name, found, fine


def devices() -> Iterator[Line]:
    """The devices that can compute here."""
    import torch  # late: it takes seconds to import

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield "cpu", f"{cores} cores for {torch.get_num_threads()} threads", True
    if not torch.cuda.is_available():
        built = (
            f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is a CPU build"
        )
        yield "gpu", f"none that torch can use; {built}", True
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}", True


def kernels() -> Iterator[Line]:
    """Whether attention under the block-diffusion mask runs, forward and backward, on each kind of device."""
    import torch

    yield "SDPA on cpu", *_tried(lambda: _attend("cpu", flex=False))
    # PyTorch has no backward of FlexAttention on CPUs: training takes SDPA there.
    yield "FlexAttention on cpu", "forward only (PyTorch); training takes SDPA", True
    if torch.cuda.is_available():
        yield "SDPA on cuda", *_tried(lambda: _attend("cuda", flex=False))
        yield "FlexAttention on cuda", *_tried(lambda: _attend("cuda", flex=True))


def extras() -> Iterator[Line]:
    """What is installed, and what is missing for what."""
    for extra, use in EXTRAS.items():
        states = {requirement: _installed(requirement) for requirement in _requirements(extra)}
        absent = [f"{requirement.name} {found}" for requirement, (found, fine) in states.items() if not fine]
        remedy = f"{', '.join(absent)}: `pip install 'diffusionvl[{extra}]'`"
        yield extra, f"{use}: {remedy if absent else 'all there'}", True
    for name, use in OTHERS.items():
        found, _ = _installed(Requirement(name))
        yield name, f"{use}: {found}", True
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError as error:
        yield "torchvision", f"does not fit this torch ({error}); install the build for it, or none", False


def _requirements(extra: str | None) -> list[Requirement]:
    """Lists what this package requires, always or for one extra."""
    found = [Requirement(line) for line in importlib.metadata.requires("diffusionvl") or []]
    always = [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]
    if extra is None:
        return always
    return [each for each in found if each.marker and each not in always and each.marker.evaluate({"extra": extra})]


def _installed(requirement: Requirement) -> tuple[str, bool]:
    """Returns the installed version, and whether it is one that is asked for."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "is missing", False
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version} is not {requirement.specifier}", False
    return version, True


def _attend(device: str, flex: bool) -> None:
    """Attends over two blocks of a clean and a noisy stream, forward and backward."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    from ..modeling.block_masks import TokenTags, dense_mask, flex_mask

    blocks = torch.arange(128, device=device)[None] // 8
    tags = TokenTags(
        blocks.repeat(1, 2), torch.arange(256, device=device)[None] // 128, torch.zeros_like(blocks.repeat(1, 2))
    )
    query, key, value = (torch.randn(1, 2, 256, 64, device=device, requires_grad=True) for _ in range(3))
    if flex:
        output = torch.compile(flex_attention)(query, key, value, block_mask=flex_mask(tags))
    else:
        output = scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(tags))
    output.sum().backward()
    assert query.grad is not None
    if not bool(query.grad.isfinite().all()):
        raise RuntimeError("its gradient is not finite")


def _tried(kernel: Callable[[], None]) -> tuple[str, bool]:
    """Returns whether a kernel works, and if not, what it says."""
    try:
        kernel()
    except (RuntimeError, NotImplementedError, ImportError) as error:
        return f"fails: {' '.join(str(error).split())[:200]}", False
    return "works", True


if __name__ == "__main__":
    sys.exit(main())
