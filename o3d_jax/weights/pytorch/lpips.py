"""LPIPS from its two files: torchvision's network, and the published weights of its channels.

They are torch's, or the HDF5 files of lpips-j: there `conv1_2/weight` lies as in flax, and each
`lin0` is a kernel of its own.
"""

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.errors import InputError
from o3d_jax.nn.lpips import TRUNKS, Lpips
from o3d_jax.weights.pytorch.names import flax_path, manifest, to_torch, torch_name, torch_shape
from o3d_jax.weights.pytorch.rules import Rule, Tally, faults, plan_network, read_file
from o3d_jax.weights.pytorch.safetensors import Source, Spec, Tensor

HDF5 = (".h5", ".hdf5")
"""The suffixes of lpips-j's files."""

HDF5_TRUNK = Rule(
    filled=r"conv.+",
    names={
        torch_name((c.name, leaf)): f"{c.name}.{leaf}"
        for stage in TRUNKS["vgg"]
        for c in stage.convolutions
        for leaf in ("weight", "bias")
    },
    dropped=r"fc[678]\.(weight|bias)",  # For the classes of ImageNet.
)
HDF5_LINS = Rule(filled=r"lin.+")

LAYERS = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
"""The numbers of the convolutions among torchvision's `features`."""


def trunk_rule(network: Literal["vgg", "alex"]) -> Rule:
    """Returns how torchvision's file differs from our LPIPS; its classifier is left out."""
    convolutions = [c.name for stage in TRUNKS[network] for c in stage.convolutions]
    return Rule(
        filled=r"conv.+",
        names={
            torch_name((ours, leaf)): f"features.{layer}.{leaf}"
            for ours, layer in zip(convolutions, LAYERS[network], strict=True)
            for leaf in ("weight", "bias")
        },
        dropped=r"classifier\.[01346]\.(weight|bias)",  # For the classes of ImageNet.
    )


def lins_rule(network: Literal["vgg", "alex"]) -> Rule:
    """Returns how the file of LPIPS's own weights differs from our LPIPS."""
    count = len(TRUNKS[network])
    names = {f"lin{i}.weight": f"lin{i}.model.1.weight" for i in range(count)}
    return Rule(filled=r"lin.+", names=names)


@functools.cache  # Tracing takes time.
def lpips_shapes(network: Literal["vgg", "alex"]) -> Any:
    """Returns the parameters of LPIPS, as a tree of shapes."""
    image = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(Lpips(network).init, jax.random.key(0), image, image)["params"]


def read_lpips(files: tuple[Path, Path], network: Literal["vgg", "alex"]) -> Any:
    """Returns the parameters of LPIPS, from the file of its trunk and that of its channel weights.

    Raises:
        InputError: a missing or damaged file, one of another network, values that are not finite,
            or no library to read it with.
    """
    shapes = lpips_shapes(network)
    leaves, wrong = {}, []
    rules = ((HDF5_TRUNK, trunk_rule(network)), (HDF5_LINS, lins_rule(network)))

    # All faults of both files are told at once.
    for path, (of_hdf5, of_torch) in zip(files, rules, strict=True):
        hdf5 = path.suffix in HDF5
        source, rule = (read_hdf5(path), of_hdf5) if hdf5 else (read_file(path), of_torch)
        if fault := faults(rule, source, shapes):
            wrong.append(fault)
            continue
        tally = Tally("lpips", path)
        planned = plan_network(tally, rule, source, shapes, lambda _: None)
        leaves |= {name: leaf.read() for name, leaf in planned.items() if leaf is not None}
        wrong += [f"{path}: {name} is not finite" for name in tally.broken]

    if wrong:
        raise InputError(
            f"these are not LPIPS's weights for {network!r}; give the trunk's file first, then "
            f"that of the channel weights: {'; '.join(wrong)}"
        )
    ordered = [np.asarray(leaves[name], np.float32) for name in manifest(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), ordered)


def read_hdf5(path: Path) -> Source:
    """Returns the tensors of an HDF5 file in flax's layout, by torch's names and in its layout.

    Raises:
        InputError: h5py is not installed, or the file is missing or damaged.
    """
    if importlib.util.find_spec("h5py") is None:
        raise InputError(f"to read {path}, install h5py: pip install 'o3d-jax[lpips]'")
    import h5py  # pyright: ignore[reportMissingImports]

    if not path.is_file():
        raise InputError(f"no file {path}; give one that was downloaded whole")
    try:
        with h5py.File(path, "r") as file:
            return Source(where=path, tensors=tuple(_hdf5_tensors(file)))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} is cut off or no HDF5 file; download it again") from error


def _hdf5_tensors(file: Any) -> Iterator[Tensor]:
    """Yields all arrays of a file; `lin0` alone stands for `lin0/weight`."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, entry: Any) -> None:
        if hasattr(entry, "dtype"):  # Groups have none.
            found[name] = np.asarray(entry[()])

    file.visititems(keep)
    for name, array in sorted(found.items()):
        parts = name.split("/")
        dotted = ".".join(parts if parts[-1] in ("weight", "bias") else [*parts, "weight"])
        path = flax_path(dotted, array.ndim)
        spec = Spec(dotted, str(array.dtype), torch_shape(path, array.shape))
        yield Tensor(spec, functools.partial(to_torch, path, array))
