"""The weights a training run starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.nn.networks import Networks, init_networks
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import BUNDLED, Model, Weights, check_fits, load_model


def start_weights(config: Config, networks: Networks) -> Weights:
    """Frozen networks from a checkpoint; trainable ones from it where it has them, else fresh.

    The checkpoint is `config.weights`; else what commands/train_vae.py, train_unet.py and
    train_lgm.py left beside the run; else the VAE of the bundled model of this name.

    Raises:
        InputError: no VAE, an image tower that is neither trained nor loaded, or weights that
            don't fit the config.
    """
    folder = _checkpoint(config)
    base = load_model(folder)
    key, _ = jax.random.split(jax.random.key(config.seed))  # The second is the training's.
    trained = config.train.train_image_encoder
    shapes, frozen_shapes = jax.eval_shape(
        lambda key: init_networks(networks, config.model, key, trained), key
    )
    frozen = _frozen(config, base, frozen_shapes, folder)
    fresh, _ = init_networks(networks, config.model, key, trained)
    beside = config.run_dir / config.name
    parts = {}
    for name, source in {"unet": "unet", "lgm": "lgm", "clip": "unet"}.items():
        where = folder if config.weights is not None else beside / source
        model = base if config.weights is not None else _read(where)
        parts[name] = None if model is None else getattr(model.weights.params, name)
        if getattr(shapes, name) is None or model is None or parts[name] is None:
            parts[name] = getattr(fresh, name)
        else:
            _check(model, parts[name], config, getattr(shapes, name), name, where)
    return Weights(params=Params(**parts), frozen=frozen)


def _read(folder: Path) -> Model | None:
    return load_model(folder) if folder.is_dir() else None


def _check(model: Model, part: Any, config: Config, shapes: Any, name: str, folder: Path) -> None:
    """Raises an InputError unless the network's shapes and its configuration are those wanted."""
    check_fits(part, shapes, f"{name} in {folder}")
    if name == "lpips":
        return
    there, here = (dataclasses.asdict(getattr(c.model, name)) for c in (model.config, config))
    wrong = [f"{k} {there[k]!r} there, {here[k]!r} here" for k in here if there[k] != here[k]]
    if wrong:
        raise InputError(f"{name} in {folder} is of another config: model.{name}.{wrong[0]}")


def _checkpoint(config: Config) -> Path:
    if config.weights is not None:
        return config.weights
    beside = config.run_dir / config.name / "vae"
    folder = beside if beside.is_dir() else BUNDLED / config.name
    if not folder.is_dir():
        raise InputError(
            f"no VAE for {config.name}: run `python -m o3d_jax.commands.train_vae` with the same "
            "config first, or give a checkpoint as --weights"
        )
    return folder


def _frozen(config: Config, base: Model, shapes: Frozen, folder: Path) -> Frozen:
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
        parts[name] = getattr(base.weights.frozen, name)
        if parts[name] is None:
            raise InputError(f"{folder} holds no frozen {name}; {remedy}")
        _check(base, parts[name], config, getattr(shapes, name), name, folder)
    return Frozen(**parts)
