"""The converter at full size: `python benchmarks/convert_full.py FOLDER [--dtype float16] [--pth]`.

Makes files of the release's and SVD's names and shapes, filled from the names (as in tests/support/
synthetic.py), converts them to a checkpoint, exports that, and compares every bit. Prints time and
peak memory of both. FOLDER must not exist; it takes three times the weights' size (1.9 B parameters
and 0.7 B of SVD: 12 GB in float32), and is deleted at the end. `--pth` needs torch.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from o3d_jax.cli import read_config
from o3d_jax.config import ModelConfig
from o3d_jax.weights.pytorch.names import manifest
from o3d_jax.weights.pytorch.rules import network_shapes
from o3d_jax.weights.pytorch.safetensors import (
    FLOATS,
    Spec,
    in_file_order,
    read_network,
    write_network,
)

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from support.synthetic import synthetic_tensor  # noqa: E402

FILES = {
    "unet": ("weights", "mv_model_unet"),
    "lgm": ("weights", "recon_model"),
    "vae": ("svd/vae", "diffusion_pytorch_model"),
    "clip": ("svd/image_encoder", "model"),
}
"""Network -> the folder and the name of its file."""


def all_specs(model: ModelConfig, dtype: str) -> dict[str, list[Spec]]:
    """The tensors of each network, in the order of its file."""
    trees = network_shapes(model)
    shapes = {network: manifest(getattr(trees, network)) for network in FILES}
    return {
        network: in_file_order(Spec(name, dtype, shape) for name, shape in rows.items())
        for network, rows in shapes.items()
    }


def make(folder: Path, specs: dict[str, list[Spec]]) -> None:
    """Writes all files, tensor by tensor."""
    for network, (place, stem) in FILES.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        write_network(folder / place, stem, specs[network], map(fill, specs[network]), {})


def fill(spec: Spec) -> np.ndarray:
    return synthetic_tensor(spec.name, spec.shape).astype(FLOATS[spec.dtype])


def to_pth(folder: Path, stem: str) -> None:
    """Replaces safetensors files by one that torch saved, through mapped files."""
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file

    tensors = {}
    for path in folder.glob(f"{stem}*.safetensors"):
        tensors |= load_file(path)  # Mapped.
    torch.save(tensors, folder / f"{stem}.pth")
    for path in folder.glob(f"{stem}*.safetensors*"):
        path.unlink()


def measured(what: str, *command: str) -> None:
    """Runs a command and prints its time and peak memory."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{what} failed")
    took = time.monotonic() - start
    sys.stdout.write(f"{what}: {took:.0f} s, peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB\n")


def different(exported: Path, specs: dict[str, list[Spec]]) -> Iterator[str]:
    """Names of tensors that are missing, superfluous or not the same to the bit."""
    for network, (place, stem) in FILES.items():
        folder = exported / place.removeprefix("weights").removeprefix("svd/")
        found = {tensor.spec.name: tensor for tensor in read_network(folder, stem).tensors}
        made = {spec.name: spec for spec in specs[network]}
        yield from sorted(found.keys() ^ made.keys())
        for name in sorted(found.keys() & made.keys()):
            same_kind = found[name].spec == made[name]
            if not same_kind or found[name].read().tobytes() != fill(made[name]).tobytes():
                yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=FLOATS, default="float32")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "released.py")
    parser.add_argument("--pth", action="store_true")
    args = parser.parse_args()
    folder = args.folder.absolute()
    config = args.config.absolute()
    specs = all_specs(read_config(config, []).model, args.dtype)
    flat = [spec for several in specs.values() for spec in several]
    total = sum(spec.nbytes for spec in flat)
    sys.stdout.write(
        f"{sum(math.prod(spec.shape) for spec in flat):,} parameters, {args.dtype}, "
        f"{total / 1e9:.2f} GB; largest tensor {max(s.nbytes for s in flat) / 1e9:.3f} GB\n"
    )
    folder.mkdir()
    try:
        make(folder, specs)
        if args.pth:
            for stem in ("mv_model_unet", "recon_model"):
                to_pth(folder / "weights", stem)
        svd = ("--svd", str(folder / "svd"), "--config", str(config))
        files = (str(folder / "weights"), str(folder / "checkpoint"))
        measured("convert", "o3d_jax.commands.convert", "released", *files, *svd)
        shutil.rmtree(folder / "weights")
        files = (str(folder / "checkpoint"), str(folder / "exported"))
        measured("export", "o3d_jax.commands.export", *files)
        wrong = list(different(folder / "exported", specs))
        sys.stdout.write(f"{len(wrong)} of {len(flat)} tensors differ {' '.join(wrong)}\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
