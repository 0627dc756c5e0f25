"""Files as users have them, of a small model: written by the safetensors library, names by rule."""

import dataclasses
import functools
import json
import re

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from support.synthetic import synthetic_tensor

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
NEWER_THAN_LGM = re.compile(r"unet\.time_embed|.*\.emb_layers\.")


@functools.cache
def shapes(model):
    """Torch name -> torch shape of each network; tests/nn/test_manifests.py checks the rule."""
    from o3d_jax.weights.pytorch.names import manifest
    from o3d_jax.weights.pytorch.rules import network_shapes

    trees = network_shapes(model)
    return {name: manifest(getattr(trees, name)) for name in ("unet", "lgm", "clip", "vae")}


def fake(names, dtype="float32"):
    """Name -> array, by the rule that filled the goldens."""
    drawn = {name: synthetic_tensor(name, shape) for name, shape in names.items()}
    return {name: array.astype(DTYPES[dtype]) for name, array in drawn.items()}


def svd_unet(model, dtype="float32"):
    own = {k[5:]: s for k, s in shapes(model)["unet"].items() if k.startswith("unet.")}
    return fake(own, dtype)


def lgm(model, dtype="float32"):
    own = {k: s for k, s in shapes(model)["lgm"].items() if not NEWER_THAN_LGM.match(k)}
    return fake(own, dtype)


def save(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, path, metadata)


def save_shards(folder, stem, tensors, index="index.json", count=3):
    """Shards of unequal sizes, and their index, as diffusers writes them."""
    where = {}
    for i in range(count):
        first, last = (len(tensors) * j**2 // count**2 for j in (i, i + 1))
        part = dict(list(tensors.items())[first:last])
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        save(folder / file, part)
        where |= dict.fromkeys(part, file)
    table = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{stem}.safetensors.{index}").write_text(json.dumps(table))


def save_svd(folder, model, dtype="float32", suffix=""):
    """A folder as diffusers lays it out, with the configs that come along."""
    parts = {
        "unet/diffusion_pytorch_model": svd_unet(model, dtype),
        "vae/diffusion_pytorch_model": fake(shapes(model)["vae"], dtype),
        "image_encoder/model": fake(shapes(model)["clip"], dtype),
    }
    for stem, tensors in parts.items():
        save(folder / f"{stem}{suffix}.safetensors", tensors, {"format": "pt"})
    configs = {"unet": model.unet, "vae": model.vae, "image_encoder": model.clip}
    for name, config in configs.items():
        values = dataclasses.asdict(config) | {"_class_name": "Ignored", "num_frames": 14}
        (folder / name / "config.json").write_text(json.dumps(values))
    return folder


def save_released(folder, model, dtype="float32"):
    save(folder / "mv_model_unet.safetensors", fake(shapes(model)["unet"], dtype))
    save(folder / "recon_model.safetensors", fake(shapes(model)["lgm"], dtype))
    return folder


def load(folder, stem):
    """All tensors of a network's safetensors files, read by the library."""
    found = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        part = load_file(path)
        assert not found.keys() & part.keys(), "a tensor is in two shards"
        found |= part
    return found


def change(folder, stem, edit):
    """Rewrites a file after `edit` has changed its tensors."""
    tensors = load(folder, stem)
    edit(tensors)
    save(folder / f"{stem}.safetensors", tensors)
