"""Weights from torch and back: which tensor becomes which parameter, and what may be missing.

`names.py` says how names and axes correspond. Here every tensor of a file must find its parameter
and every parameter its tensor, but for the exceptions that a `Rule` names. Values keep
the type they are stored in, so that the way back gives the same bits.
"""

import functools
import hashlib
import importlib.util
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from o3d_jax.config import ModelConfig
from o3d_jax.errors import InputError
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.weights.pytorch.names import flax_path, from_torch, manifest, torch_shape
from o3d_jax.weights.pytorch.prefixes import shared_prefix
from o3d_jax.weights.pytorch.safetensors import (
    FLOATS,
    Source,
    Spec,
    Tensor,
    read_json,
    read_safetensors,
    read_shards,
)
from o3d_jax.weights.streaming import Leaf

Progress = Callable[[int], object]
"""A function that is told the bytes of each tensor that is done."""


@dataclass(frozen=True)
class Rule:
    """How the tensors of a file differ from the parameters of a network."""

    prefix: str = ""
    """What our names have before the file's."""
    fresh: str = r"(?!)"
    """Pattern of the full torch names of parameters that the file does not know: they start anew.
    """
    dropped: str = r"(?!)"
    """Pattern of the file's names of tensors that are no parameters."""
    filled: str = r".+"
    """Pattern of the full torch names of parameters that the file has, where another has the rest.
    """
    names: Mapping[str, str] = field(default_factory=dict)
    """From our names to the file's, where they differ in more than the prefix."""

    def theirs(self, name: str) -> str:
        """Returns what the file calls a parameter."""
        return self.names.get(name, name.removeprefix(self.prefix))


RELEASED = Rule()
"""The rule of the release's own files and of SVD's VAE: all names are the same."""

SVD_UNET = Rule(
    prefix="unet.",
    fresh=r"cond_encoder\.\d+\..+|(down|up)_plucker\.\d+\..+|mid_plucker\..+",
)
"""The rule of SVD's U-Net, which knows no feedback and no rays."""

LGM = Rule(
    fresh=r"unet\.time_embed\.\d\..+|unet\..+\.emb_layers\.1\..+",
    dropped=r"lpips_loss\..+",
)
"""The rule of LGM, which knows no noise level; a file saved during training has its loss."""

OUTER = "unet."
"""What the U-Net's names begin with in files of U-Net and LGM, which have more beside it."""

IMAGE_ENCODER = Rule(dropped=r"vision_model\.embeddings\.position_ids")
"""The rule of SVD's image tower; transformers before 4.31 stored the numbers 0, 1, 2, ... along."""


@dataclass(frozen=True)
class Shapes:
    """The parameters of all networks, as trees of shapes."""

    unet: Any
    lgm: Any
    clip: Any
    vae: Any


@functools.cache  # Tracing takes seconds.
def network_shapes(model: ModelConfig) -> Shapes:
    """Returns the parameters that a model's networks have, as shapes."""
    networks = build_networks(model)
    params, frozen = jax.eval_shape(
        lambda key: init_networks(networks, model, key, train_image_encoder=True),
        jax.random.key(0),
    )
    trees = (params.unet, params.lgm, params.clip, frozen.vae)
    return Shapes(*(tree["params"] for tree in trees))


@dataclass
class Tally:
    """What was done for one network; filled while its tensors are read."""

    network: str
    where: Path | None
    """The file, or the index of its shards."""
    dropped: tuple[str, ...] = ()
    fresh: dict[str, int] = field(default_factory=dict)
    """Parameters that start anew, and their size."""
    casts: int = 0
    """Tensors that were given another type."""
    done: dict[str, Spec] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Tensors that are not finite."""

    def see(self, spec: Spec, array: Shaped[np.ndarray, "..."]) -> None:
        """Notes a tensor in torch's layout, with its hash and whether it is finite."""
        if not np.isfinite(array).all():
            self.broken.append(spec.name)
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.digests[spec.name] = hashlib.blake2b(raw.data, digest_size=16).hexdigest()
        self.done[spec.name] = spec

    def digest(self) -> str:
        """Returns one hash of all names, types, shapes and bytes, in whatever order and files."""
        rows = [
            f"{name} {spec.dtype} {spec.shape} {self.digests[name]}\n"
            for name, spec in sorted(self.done.items())
        ]
        return hashlib.blake2b("".join(rows).encode(), digest_size=16).hexdigest()

    def report(self) -> str:
        """Returns one line for people to read."""
        read = sum(math.prod(spec.shape) for spec in self.done.values())
        dtypes = sorted({spec.dtype for spec in self.done.values()})
        parts = [
            f"{self.network}: {len(self.done) + len(self.dropped)} tensors read",
            f"{len(self.done)} filled ({read:,} parameters, {', '.join(dtypes)})",
        ]
        if self.casts:
            parts.append(f"{self.casts} cast")
        if self.fresh:
            parts.append(f"{len(self.fresh)} fresh ({sum(self.fresh.values()):,} parameters)")
        if self.dropped:
            parts.append(f"dropped {', '.join(self.dropped)}")
        source = f" from {self.where}" if self.where else ""
        return f"{', '.join(parts)}{source}\n  blake2b {self.digest()}\n"


def check_all_finite(tallies: list[Tally]) -> None:
    """Raises an InputError that names each tensor that was not finite."""
    broken = [f"{tally.network} {name}" for tally in tallies for name in sorted(tally.broken)]
    if broken:
        raise InputError(
            f"{len(broken)} tensors hold infinities or NaN; download the files again, or take "
            f"a wider type: {', '.join(broken)}"
        )


def read_fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a diffusers `config.json`; none if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    return read_json(path.read_bytes(), path) if path.is_file() else {}


def _wanted(rule: Rule, shapes: Any) -> dict[str, tuple[int, ...]]:
    """Returns the parameters that a file has to have, as it names them."""
    return {
        rule.theirs(name): shape
        for name, shape in manifest(shapes).items()
        if re.fullmatch(rule.filled, name) and not re.fullmatch(rule.fresh, name)
    }


def prefix_fault(rule: Rule, source: Source, shapes: Any) -> str:
    """Returns what is wrong if all names of a file share a prefix that they should not have."""
    names = [tensor.spec.name for tensor in source.tensors]
    prefix = shared_prefix(names, _wanted(rule, shapes), OUTER)
    return (
        f'{source.where}: all {len(names)} names begin with "{prefix}", as wrappers of torch have '
        f"it; give --strip-prefix {prefix}"
        if prefix
        else ""
    )


def faults(rule: Rule, source: Source, shapes: Any) -> str:
    """Returns what keeps a file from being a network with these parameters; empty if nothing does.

    It names all tensors that are missing, superfluous, misshapen or of a type parameters don't
    have, as the file names them.
    """
    wanted = _wanted(rule, shapes)
    found = {tensor.spec.name: tensor.spec for tensor in _kept(rule, source)}
    wrong = []

    # A part of the network has the right tensors under other names: one fault, not hundreds.
    if not any(n.startswith(OUTER) for n in found) and any(OUTER + n in wanted for n in found):
        wrong.append(f'names without "{OUTER}": a U-Net alone; give the file of the whole network')
        found = {OUTER + n if OUTER + n in wanted else n: spec for n, spec in found.items()}

    both = sorted(found.keys() & wanted.keys())
    if missing := sorted(wanted.keys() - found.keys()):
        wrong.append(f"{len(missing)} missing ({', '.join(missing)})")
    if extra := sorted(found.keys() - wanted.keys()):
        wrong.append(f"{len(extra)} superfluous ({', '.join(extra)})")

    bent = [name for name in both if found[name].shape != wanted[name]]
    rows = [f"{name} {found[name].shape}, not {wanted[name]}" for name in bent]
    if rows:
        wrong.append(f"{len(rows)} misshapen ({', '.join(rows)})")
    types = {name: found[name].dtype for name in both if found[name].dtype not in FLOATS}
    if types:
        kinds = ", ".join(sorted(set(types.values())))
        wrong.append(f"{len(types)} of type {kinds}, not {', '.join(FLOATS)} ({', '.join(types)})")
    return f"{source.where}: {'; '.join(wrong)}" if wrong else ""


def _kept(rule: Rule, source: Source) -> list[Tensor]:
    return [t for t in source.tensors if not re.fullmatch(rule.dropped, t.spec.name)]


def plan_network(
    tally: Tally, rule: Rule, source: Source, shapes: Any, progress: Progress
) -> dict[str, Leaf | None]:
    """Returns a leaf for each parameter that reads its tensor, by torch name; None for fresh ones.

    The file must have no `faults`; `shapes` is the network's tree of parameters.
    """
    wanted = {n: s for n, s in manifest(shapes).items() if re.fullmatch(rule.filled, n)}
    kept = {tensor.spec.name: tensor for tensor in _kept(rule, source)}
    names = {tensor.spec.name for tensor in source.tensors}
    tally.dropped = tuple(sorted(names - kept.keys()))
    fresh = sorted(name for name in wanted if re.fullmatch(rule.fresh, name))
    tally.fresh = {name: math.prod(wanted[name]) for name in fresh}
    return {
        name: None if name in fresh else _leaf(name, kept[rule.theirs(name)], tally, progress)
        for name in wanted
    }


def _leaf(name: str, tensor: Tensor, tally: Tally, progress: Progress) -> Leaf:
    spec = tensor.spec
    path = flax_path(name, len(spec.shape))

    def read() -> Shaped[np.ndarray, "..."]:
        array = tensor.read()
        tally.see(spec, array)
        progress(array.nbytes)
        return from_torch(name, array)

    shape = from_torch(name, np.broadcast_to(np.int8(0), spec.shape)).shape
    assert torch_shape(path, shape) == spec.shape
    return Leaf(shape=shape, dtype=FLOATS[spec.dtype], read=read)


def fresh_parameters(
    model: ModelConfig, network: str, names: list[str], seed: int
) -> dict[str, Float[Array, "..."]]:
    """Returns parameters of "unet" or "lgm" as the modules initialize them, by torch name."""
    networks = build_networks(model)

    def draw(key: Any) -> dict[str, Array]:
        params, _ = init_networks(networks, model, key, train_image_encoder=False)
        flat = dict(named_leaves(getattr(params, network)["params"]))
        return {name: flat[name] for name in names}

    return jax.jit(draw)(jax.random.key(seed))  # What is not returned is not drawn.


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the torch name and the leaf of each parameter."""
    leaves = jax.tree.leaves(tree)
    yield from zip(manifest(tree), leaves, strict=True)


def read_file(path: Path) -> Source:
    """Returns the tensors of a safetensors file, of an index of shards, or of a torch file.

    Raises:
        InputError: no such file, a damaged one, or a torch file that is more than tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise InputError(f"no file {path}; give one that was downloaded whole")
    return read_shards(path) if path.suffix == ".json" else read_torch(path)


def read_released(folder: Path, stem: str) -> Source:
    """Returns the tensors of STEM.pth as the release has it, or of our own STEM.safetensors.

    Raises:
        InputError: none of them is there, or as `read_file`.
    """
    readers = {
        f"{stem}.pth": read_torch,
        f"{stem}.safetensors": read_safetensors,
        f"{stem}.safetensors.index.json": read_shards,
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            return read(folder / name)
    raise InputError(f"{folder} holds none of {', '.join(readers)}; give the release's folder")


_TORCH_ERRORS = (
    *(RuntimeError, EOFError, ValueError, OSError, struct.error),
    *(LookupError, AssertionError, AttributeError, TypeError, ArithmeticError, ImportError),
)
"""What torch raises for bytes that are no file of its own, depending on where it stumbles."""


def read_torch(path: Path) -> Source:
    """Returns the tensors of a file that torch saved; they stay on disk, and no code of it is run.

    Raises:
        InputError: torch is not installed, the file is damaged, or it is more than tensors.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"to read {path}, install torch: pip install 'o3d-jax[convert]'")
    import torch  # pyright: ignore[reportMissingImports]

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # Torch before 1.6 wrote files that cannot be mapped.
    try:
        found = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is more than tensors, or damaged; nothing of it was run. Save the model's "
            "state_dict alone, or download it again"
        ) from error
    except _TORCH_ERRORS as error:
        raise InputError(f"{path} is cut off or damaged; download it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is a {type(found).__name__}; save the model's state_dict alone")
    return Source(where=path, tensors=tuple(_torch_tensor(path, *row) for row in found.items()))


def _torch_tensor(path: Path, name: Any, tensor: Any) -> Tensor:
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise InputError(f"{path}: {name} is no tensor; save the model's state_dict alone")
    if tensor.device.type != "cpu":
        raise InputError(f"{path}: {name} has no values, it is {tensor.device}; save it from a CPU")
    dense = tensor.layout == torch.strided
    dtype = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")

    def read() -> Shaped[np.ndarray, "..."]:
        plain = tensor.detach().contiguous()
        if dtype == "bfloat16":  # numpy's is not torch's: hand over the bits.
            return plain.view(torch.int16).numpy().view(FLOATS[dtype])
        return plain.numpy()

    return Tensor(Spec(name, dtype, tuple(tensor.shape)), read)
