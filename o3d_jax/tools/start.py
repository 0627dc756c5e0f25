"""The weights a training run starts from."""

from pathlib import Path
from typing import Any

import jax

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.io.checkpoint import BUNDLED, Weights, check_fits, load_model
from o3d_jax.nn.networks import Networks, init_networks
from o3d_jax.types import Frozen, Params


def start_weights(config: Config, networks: Networks) -> Weights:
    """Frozen networks from a checkpoint; trainable ones from it where it has them, else fresh.

    The checkpoint is `config.weights`; else what tools/train_vae.py, train_unet.py and
    train_lgm.py left beside the run; else the VAE of the bundled model of this name.

    Raises:
        InputError: no VAE, an image tower that is neither trained nor loaded, or weights that
            don't fit the config.
    """
    folder = _checkpoint(config)
    found = load_model(folder).weights
    key = jax.random.key(config.seed)
    trained = config.train.train_image_encoder
    shapes, frozen_shapes = jax.eval_shape(
        lambda key: init_networks(networks, config.model, key, trained), key
    )
    frozen = _frozen(config, found, frozen_shapes, folder)
    loaded = found.params if config.weights is not None else _beside(config)
    source = config.weights or config.run_dir / config.name
    for name in ("unet", "lgm", "clip"):
        if getattr(loaded, name) is not None and getattr(shapes, name) is not None:
            check_fits(getattr(loaded, name), getattr(shapes, name), f"{name} in {source}")
    fresh, _ = init_networks(networks, config.model, key, trained)

    def choose(name: str) -> Any:
        unused = getattr(shapes, name) is None or getattr(loaded, name) is None
        return getattr(fresh if unused else loaded, name)

    params = Params(unet=choose("unet"), lgm=choose("lgm"), clip=choose("clip"))
    return Weights(params=params, frozen=frozen)


def _beside(config: Config) -> Params:
    """What tools/train_unet.py and tools/train_lgm.py left beside the run."""
    folder = config.run_dir / config.name
    found = Params(unet=None, lgm=None)
    if (folder / "unet").is_dir():
        found = load_model(folder / "unet").weights.params
    if (folder / "lgm").is_dir():
        lgm = load_model(folder / "lgm").weights.params.lgm
        found = Params(unet=found.unet, lgm=lgm, clip=found.clip)
    return found


def _checkpoint(config: Config) -> Path:
    if config.weights is not None:
        return config.weights
    beside = config.run_dir / config.name / "vae"
    folder = beside if beside.is_dir() else BUNDLED / config.name
    if not folder.is_dir():
        raise InputError(
            f"no VAE for {config.name}: run `python -m o3d_jax.tools.train_vae` with the same "
            "config first, or give a checkpoint as --weights"
        )
    return folder


def _frozen(config: Config, found: Weights, shapes: Frozen, folder: Path) -> Frozen:
    """The checkpoint's frozen networks, those that the config needs."""
    remedies = {
        "vae": "give another checkpoint as --weights",
        "clip": "give converted SVD weights as --weights, or set --train.train-image-encoder",
        "lpips": "give a checkpoint with LPIPS as --weights, or set --optim.lpips-weight 0",
    }
    parts = {}
    for name, remedy in remedies.items():
        if getattr(shapes, name) is None:
            continue
        parts[name] = getattr(found.frozen, name)
        if parts[name] is None:
            raise InputError(f"{folder} holds no frozen {name}; {remedy}")
        check_fits(parts[name], getattr(shapes, name), f"{name} in {folder}")
    return Frozen(**parts)
