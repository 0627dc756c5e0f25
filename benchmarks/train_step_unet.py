"""The U-Net against diffusers' in PyTorch: same weights, same inputs, same processor, in turns.

Half of `benchmarks/train_step.py`; needs the extra `[parity]`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from o3d_jax.config import UnetConfig  # noqa: E402
from o3d_jax.nn.unet import SpatioTemporalUnet  # noqa: E402
from o3d_jax.weights.pytorch.names import flax_path, from_torch  # noqa: E402
from support.originals import OUTPUT, evaluate, load, svd_unet  # noqa: E402
from support.synthetic import synthetic_variables  # noqa: E402

WIDTHS = (64, 128, 256, 256)
HEADS = (1, 2, 4, 4)  # Of 64 features each, as SVD's.
LATENTS, GIVEN, CONTEXT = 4, 4, 1024  # SVD's channels.

GRADIENTS_OFF = 1e-4
"""Greatest relative L2 distance of all gradients together. Seen: 3e-6, the float32 noise of some
hundred layers and back; a wrong term leaves 0.01 and more."""


class Size(NamedTuple):
    """Of the video."""

    batch: int
    frames: int
    side: int
    """Of the latents."""


class Pair(NamedTuple):
    """The same computation on both sides; each call does all its work before it returns."""

    name: str
    ours: Callable[[], object]
    torch: Callable[[], object]


class Ratio(NamedTuple):
    """Processor seconds of both, in order of the rounds."""

    name: str
    ours: tuple[float, ...]
    torch: tuple[float, ...]


def measure(size: Size, threads: int, repeats: int, channels_last: bool) -> list[Ratio]:
    """Both sides in turn, ours first and torch first in every other round."""
    torch.set_num_threads(threads)
    found = []
    for pair in pairs(size, channels_last):
        rounds = []
        for i in range(repeats):
            order = (pair.ours, pair.torch)
            times = [_clock(call) for call in (order if i % 2 else order[::-1])]
            rounds.append(times if i % 2 else times[::-1])
        found.append(Ratio(pair.name, *(tuple(side) for side in zip(*rounds, strict=True))))
    return found


def _clock(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def pairs(size: Size, channels_last: bool) -> list[Pair]:
    """Forward, and forward with all gradients, checked to agree.

    `channels_last` lays out torch's kernels so; it is asked for by name, as diffusers does not.

    Raises:
        AssertionError: outputs or gradients differ by more than rounding.
    """
    config = UnetConfig(WIDTHS, num_attention_heads=HEADS)
    unet = SpatioTemporalUnet(config, LATENTS, CONTEXT)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    b, v, side = size
    x, weights = normal(b, v, side, side, LATENTS + GIVEN), normal(b, v, side, side, LATENTS)
    rest = (normal(b), normal(b, 1, CONTEXT), np.tile(np.float32([[6, 127, 0.02]]), (b, 1)))
    variables = synthetic_variables(unet, x, *rest)
    twin = load(svd_unet(config, LATENTS, CONTEXT, GIVEN), variables)
    if channels_last:
        twin = twin.to(memory_format=torch.channels_last)

    @jax.jit
    def forward(variables, x):
        return unet.apply(variables, x, *rest)

    @jax.jit
    def gradient(variables, x):
        return jax.grad(lambda *at: (weights * unet.apply(at[0], at[1], *rest)).sum(), (0, 1))(
            variables, x
        )

    at = (variables, jnp.asarray(x))
    torch_rest = [torch.from_numpy(a) for a in rest]
    torch_x = torch.from_numpy(np.moveaxis(x, -1, 2).copy())
    torch_weights = torch.from_numpy(np.moveaxis(weights, -1, 2).copy())

    def torch_forward() -> torch.Tensor:
        with torch.no_grad():
            return twin(torch_x, *torch_rest, return_dict=False)[0]

    def torch_gradient() -> torch.Tensor:
        twin.zero_grad(set_to_none=True)
        given = torch_x.detach().requires_grad_()
        (twin(given, *torch_rest, return_dict=False)[0] * torch_weights).sum().backward()
        assert given.grad is not None
        return given.grad

    def call(module, *inputs):
        return module(*inputs, return_dict=False)[0].movedim(2, -1)

    evaluate(twin, call, torch_x, *rest).check(forward(*at), OUTPUT)
    _check_gradients(*gradient(*at), torch_gradient(), twin)
    return [
        Pair("forward", lambda: jax.block_until_ready(forward(*at)), torch_forward),
        Pair("forward + backward", lambda: jax.block_until_ready(gradient(*at)), torch_gradient),
    ]


def _check_gradients(ours, ours_x, torch_x: torch.Tensor, twin: torch.nn.Module) -> None:
    """Every parameter's, and the input's, together by relative L2, none missing on either side."""
    found = {
        tuple(key.key for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_flatten_with_path(ours["params"])[0]
    }
    difference, norm = [], []

    def compare(a: np.ndarray, b: np.ndarray) -> None:
        assert a.shape == b.shape
        difference.append(np.square(a.astype(np.float64) - b).sum())
        norm.append(np.square(b.astype(np.float64)).sum())

    for name, parameter in twin.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        compare(found.pop(flax_path(name, grad.ndim)), from_torch(name, grad.numpy()))
    assert not found, found.keys()
    off = np.sqrt(sum(difference) / sum(norm))
    assert off < GRADIENTS_OFF, off
    off_x = np.linalg.norm(np.asarray(ours_x) - torch_x.movedim(2, -1).numpy())
    off_x /= np.linalg.norm(np.asarray(ours_x))
    assert off_x < GRADIENTS_OFF, off_x
