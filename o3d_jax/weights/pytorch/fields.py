"""What config files beside weights say of a network: fields that no tensor shows, like heads."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from o3d_jax.config import ClipConfig, LgmConfig, ModelConfig, UnetConfig, VaeConfig

NetworkName = Literal["unet", "lgm", "vae", "clip", "lpips"]
NETWORKS: tuple[NetworkName, ...] = ("unet", "lgm", "vae", "clip", "lpips")


@dataclass(frozen=True)
class UnetConstants:
    """What diffusers can vary in a U-Net, and we cannot, or only along with other fields."""

    in_channels: int
    out_channels: int
    cross_attention_dim: int
    projection_class_embeddings_input_dim: int
    transformer_layers_per_block: int = 1


@dataclass(frozen=True)
class VaeConstants:
    """What diffusers can vary in a VAE, and we cannot."""

    in_channels: int = 3
    out_channels: int = 3
    act_fn: str = "silu"


@dataclass(frozen=True)
class ClipConstants:
    """What transformers can vary in an image tower, and we cannot."""

    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5


def field_faults(network: NetworkName, found: Mapping[str, Any], model: ModelConfig) -> str:
    """Returns where the fields of a file differ from our network's, all of them; empty if none do.

    Fields that the file lacks, or that we don't know, pass.
    """
    ours = _config(network, model)
    wrong = _different(found, ours, "in the config")
    wrong += _different(found, _constants(network, model), "in our network")
    return ", ".join(wrong)


def _different(found: Mapping[str, Any], ours: Any, where: str) -> list[str]:
    fields = {} if ours is None else dataclasses.asdict(ours)
    return [
        f"{name} {_plain(found[name])!r} there, {value!r} {where}"
        for name, value in fields.items()
        if name in found and not _same(_plain(found[name]), value)
    ]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _same(there: Any, here: Any) -> bool:
    """Returns whether both mean the same: in diffusers, one number may stand for all scales."""
    if isinstance(there, tuple) and not isinstance(here, tuple):
        return bool(there) and all(each == here for each in there)
    if isinstance(here, tuple) and not isinstance(there, tuple):
        return bool(here) and all(each == there for each in here)
    return there == here


def _config(
    network: NetworkName, model: ModelConfig
) -> UnetConfig | LgmConfig | VaeConfig | ClipConfig | None:
    """Returns the network's config; None for LPIPS, which has nothing to choose."""
    return None if network == "lpips" else getattr(model, network)


def _constants(
    network: NetworkName, model: ModelConfig
) -> UnetConstants | VaeConstants | ClipConstants | None:
    if network == "unet":
        return UnetConstants(
            in_channels=2 * model.vae.latent_channels,  # The noisy view and the condition image.
            out_channels=model.vae.latent_channels,
            cross_attention_dim=model.clip.projection_dim,
            projection_class_embeddings_input_dim=3 * model.unet.addition_time_embed_dim,
        )
    return {"vae": VaeConstants(), "clip": ClipConstants()}.get(network)
