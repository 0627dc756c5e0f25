"""The weights a training run starts from."""

import jax

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.io.checkpoint import BUNDLED, Weights, check_fits, load_model
from o3d_jax.nn.networks import Networks, init_networks


def start_weights(config: Config, networks: Networks) -> Weights:
    """Fresh trainable networks, and whatever the checkpoint `config.weights` holds.

    Without one: the VAE that tools/train_vae.py left beside the run, or that of the bundled
    model. A VAE is never trained here, so there must be one.

    Raises:
        InputError: no VAE, an image tower that is neither trained nor loaded, or weights that
            don't fit the config.
    """
    key = jax.random.key(config.seed)
    trained = config.train.train_image_encoder
    params, frozen = init_networks(networks, config.model, key, trained)
    beside = config.run_dir / config.name / "vae"
    folder = config.weights or (beside if beside.is_dir() else BUNDLED / config.name)
    if not folder.is_dir():
        raise InputError(
            f"no VAE for {config.name}: run `python -m o3d_jax.tools.train_vae` with the same "
            "config first, or give a checkpoint as --weights"
        )
    found = load_model(folder).weights
    if found.frozen.vae is None:
        raise InputError(f"{folder} holds no VAE; give another checkpoint as --weights")
    use = {"vae": found.frozen.vae}
    if not trained:
        if found.frozen.clip is None:
            raise InputError(
                f"{folder} holds no frozen image tower; give converted SVD weights as --weights, "
                "or train one with --train.train-image-encoder"
            )
        use["clip"] = found.frozen.clip
    if config.optim.lpips_weight > 0:
        if found.frozen.lpips is None:
            raise InputError(f"{folder} holds no LPIPS weights; set --optim.lpips-weight 0")
        use["lpips"] = found.frozen.lpips
    for name, tree in use.items():
        check_fits(tree, getattr(frozen, name), f"{name} in {folder}")
    return Weights(params=_with_pretrained(config, params, found), frozen=type(frozen)(**use))


def _with_pretrained(config: Config, params, found: Weights):
    """Takes trainable networks from the checkpoint only where one was asked for by name."""
    if config.weights is None:
        return params
    parts = {}
    for name in ("unet", "lgm", "clip"):
        fresh, loaded = getattr(params, name), getattr(found.params, name)
        if fresh is not None and loaded is not None:
            check_fits(loaded, fresh, f"{name} in {config.weights}")
        parts[name] = fresh if fresh is None or loaded is None else loaded
    return type(params)(**parts)
