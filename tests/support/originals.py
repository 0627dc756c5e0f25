"""The torch originals with our weights, and how far from them a float32 twin may be.

The reference is the original in float64. What it differs by in float32 is the noise of the
arithmetic, whatever the sizes drawn; ours may differ by a few times as much.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

from o3d_jax.config import UnetConfig, VaeConfig
from o3d_jax.weights.pytorch.names import flax_path, from_torch, to_torch, torch_name

GROUPS = 32  # Of all normalizations: fixed in diffusers.


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far ours may be from the exact value."""

    noise: float
    """Times the original's own float32 noise: another order of sums is another draw of it."""
    floor: float
    """Times the largest value, where that noise happens to be small."""


OUTPUT = Limit(5, 1e-6)  # Seen: 2.4 times, and 1e-6 as sinusoids are float32 in float64 too.
# Seen: 5 times, and 3e-5 for single numbers (mix_factor). Normalizations over few values and sums
# that nearly cancel, as of a bias in front of them, make rounding larger on the way back.
GRADIENT = Limit(10, 5e-5)


def load(module: torch.nn.Module, variables: Mapping) -> torch.nn.Module:
    """The module with our parameters; none may be missing or left over, so names agree, too."""
    state = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        path = tuple(key.key for key in keys)
        state[torch_name(path)] = torch.from_numpy(to_torch(path, leaf).copy())
    module.load_state_dict(state, strict=True)
    return module.eval()


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an original returns, and what float32 makes of it."""

    exact: np.ndarray
    rounded: np.ndarray

    def check(self, ours, limit: Limit = OUTPUT, name: str = "output") -> None:
        """Holds ours to the noise of the original."""
        assert ours.shape == self.exact.shape
        largest = np.abs(self.exact).max(initial=0.0)
        noise = np.abs(self.rounded - self.exact).max(initial=0.0)
        error = np.abs(np.asarray(ours, np.float64) - self.exact).max(initial=0.0)
        allowed = max(limit.noise * noise, limit.floor * largest)
        assert error <= allowed, f"{name}: error {error:.1e}, torch's own {noise:.1e}, of {largest}"


Call = Callable[..., torch.Tensor]


def evaluate(module: torch.nn.Module, call: Call, *inputs) -> Reference:
    """`call(module, *inputs)` in both precisions."""
    inputs = [tensor(x) for x in inputs]
    with torch.no_grad():
        rounded = call(module, *inputs)
        exact = call(copy.deepcopy(module).double(), *(x.double() for x in inputs))
    assert exact.dtype == torch.float64  # Not merely a second run in float32.
    return Reference(exact.numpy(), rounded.double().numpy())


def gradients(module: torch.nn.Module, call: Call, weights, *inputs) -> dict[tuple, Reference]:
    """Those of sum(weights * output), by our path of the parameter, in our layout."""
    found = []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(module).to(dtype)
        output = call(twin, *(tensor(x).to(dtype) for x in inputs))
        (output * tensor(weights).to(dtype)).sum().backward()
        found.append({name: _gradient(p).double().numpy() for name, p in twin.named_parameters()})
    rounded, exact = found
    return {
        flax_path(name, exact[name].ndim): Reference(
            from_torch(name, exact[name]), from_torch(name, rounded[name])
        )
        for name in exact
    }


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zero where torch has none: the output does not depend on it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def svd_unet(
    config: UnetConfig, latents: int, context: int, given: int = 2
) -> UNetSpatioTemporalConditionModel:
    """diffusers' network of a configuration of ours; `given` are the condition's channels."""
    across = len(config.block_out_channels) - 1
    return UNetSpatioTemporalConditionModel(
        in_channels=latents + given,
        out_channels=latents,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * across
        + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * across,
        block_out_channels=config.block_out_channels,
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=3 * config.addition_time_embed_dim,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=context,
        num_attention_heads=config.num_attention_heads,
    )


def svd_vae(config: VaeConfig) -> AutoencoderKLTemporalDecoder:
    """diffusers' autoencoder of a configuration of ours."""
    return AutoencoderKLTemporalDecoder(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
    )
