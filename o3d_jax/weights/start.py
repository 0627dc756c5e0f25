"""The weights a training run starts from."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Key

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.nn.networks import Networks, init_networks
from o3d_jax.steps.parts import split_parts
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import BUNDLED, Model, Weights, check_fits, load_model
from o3d_jax.weights.fetched import find_checkpoint

SOURCES = {"vae": "vae", "unet": "unet", "clip": "unet", "lgm": "lgm"}
"""The part of the training that leaves each network behind."""


def start_weights(config: Config, networks: Networks, key: Key[Array, ""]) -> Weights:
    """Returns the weights that a training of `config.train.part` starts from.

    Frozen networks are those of a checkpoint; those that train are, too, where it has them, else
    they are made fresh from the key. The checkpoint is `config.weights`; else what trainings of
    single parts left beside the run; else, for the VAE, the bundled model of this name.

    Raises:
        InputError: no VAE, an image tower that is neither trained nor loaded, or weights that
            don't fit the config.
    """

    def fresh(key: Key[Array, ""]) -> Weights:
        made = init_networks(networks, config.model, key, config.train.train_image_encoder)
        params, frozen = split_parts(config.train.part, *made)
        return Weights(params=params, frozen=frozen)

    read = functools.cache(load_model)  # Several networks may be of one checkpoint.
    shapes = jax.eval_shape(fresh, key)
    frozen = _frozen(config, read, shapes.frozen)

    # Fresh ones are made only if a network is missing: at full size it takes minutes.
    wanted = _networks(shapes.params)
    found = {name: _trained(config, read, name, shape) for name, shape in wanted.items()}
    known = {name: network for name, network in found.items() if network is not None}
    params = known if len(known) == len(wanted) else _networks(fresh(key).params) | known
    return Weights(params=dataclasses.replace(shapes.params, **params), frozen=frozen)


def _networks(params: Params) -> dict[str, Any]:
    """Returns the networks that are there, by name."""
    named = ((field.name, getattr(params, field.name)) for field in dataclasses.fields(params))
    return {name: network for name, network in named if network is not None}


def _trained(config: Config, read: Callable[[Path], Model], name: str, shapes: Any) -> Any:
    """Returns a network that is to be trained further; None if there is none yet."""
    beside = config.run_dir / config.name / SOURCES[name] / "model"
    folder = beside if config.weights is None else find_checkpoint(config.weights)
    if config.weights is None and not folder.is_dir():
        return None
    model = read(folder)
    group = model.weights.frozen if name == "vae" else model.weights.params
    part = getattr(group, name)
    if part is not None:
        _check(model, part, config, shapes, name, folder)
    return part


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
    """Returns the folder that holds the frozen networks."""
    if config.weights is not None:
        return find_checkpoint(config.weights)
    beside = config.run_dir / config.name / "vae" / "model"
    folder = beside if beside.is_dir() else BUNDLED / config.name
    if not folder.is_dir():
        raise InputError(
            f"no VAE for {config.name}: train one first, by `--train.part vae` with the same "
            "config, or give a checkpoint as --weights"
        )
    return folder


def _frozen(config: Config, read: Callable[[Path], Model], shapes: Frozen) -> Frozen:
    """Returns those of a checkpoint's frozen networks that the config needs."""
    remedies = {
        "vae": "give another checkpoint as --weights",
        "clip": "give converted SVD weights as --weights, or set --train.train-image-encoder",
        "lpips": "give a checkpoint with LPIPS as --weights, or set --optim.lpips-weight 0",
    }
    needed = [name for name in remedies if getattr(shapes, name) is not None]
    parts = dict.fromkeys(remedies)
    if not needed:
        return Frozen(**parts)

    folder = _checkpoint(config)
    base = read(folder)
    for name in needed:
        parts[name] = getattr(base.weights.frozen, name)
        if parts[name] is None:
            raise InputError(f"{folder} holds no frozen {name}; {remedies[name]}")
        _check(base, parts[name], config, getattr(shapes, name), name, folder)
    return Frozen(**parts)
