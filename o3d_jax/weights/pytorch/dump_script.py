"""Writes what every module of a torch network returns, for `o3d weights compare`.

To be used in the PyTorch environment: needs this file alone, torch and numpy. Beside their code:

    from dump_torch import dump

    dump(
        unet,  # the torch module
        lambda: unet(sample, timestep, embedding, added_time_ids=ids),  # runs it once
        "dump",  # a new folder
        network="svd_unet",
        sample=sample,
        timestep=timestep,
        encoder_hidden_states=embedding,
        added_time_ids=ids,
    )

The keywords are what our side needs to run the same, in torch's layouts, as the module is given it;
b videos, f frames, n images:

    network         inputs
    svd_unet        UNetSpatioTemporalConditionModel of SVD
                    sample [b f c h w], the scaled noisy latents, then those of the condition image;
                    timestep [] or [b]; encoder_hidden_states [b 1 d]; added_time_ids [b 3]
    unet            MVModel of the Ouroboros3D release
                    the same, and extrinsics [b f 4 4], camera to world, OpenCV; intrinsics
                    [b f 3 3] in units of the image size; cond_rgb and cond_ccm [b f 3 H W] in
                    [0, 1], or neither
    recon_model     LGM of the release
                    images [b f 3 h w] in [-1, 1]; timestep [] or [b]; c2w [b f 4 4]; intrinsics
                    [b f 3 3] as above (from a field of view: 0.5 / tan(fov / 2), center 0.5)
    vae_encoder     AutoencoderKLTemporalDecoder.encode
                    images [n 3 h w] in [-1, 1]
    vae_decoder     its decode, with num_frames=f
                    latents [b f c h w], not scaled (the call itself takes them as [(b f) c h w])
    image_encoder   CLIPVisionModelWithProjection
                    pixel_values [n 3 h w], normalized

Run it in float32 and eval mode; on a GPU with torch.backends.cudnn.allow_tf32 = False. A large
array is thinned to every k-th of its values.
"""

from __future__ import annotations  # For the Python of older PyTorch environments.

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

LIMIT = 200_000  # Values kept of one output: 0.8 MB, so about 2 GB for the full denoiser.


def dump(
    model: torch.nn.Module,
    call: Callable[[], object],
    folder: str | pathlib.Path,
    *,
    network: str,
    limit: int = LIMIT,
    **inputs: torch.Tensor | np.ndarray | float,
) -> None:
    """Runs `call()` once and writes `inputs`, and what each of `model`'s modules returned.

    Raises:
        FileExistsError: there is a dump in the folder.
        ValueError: one of the inputs is no tensor or number, or `call` did not run `model`.
    """
    folder = pathlib.Path(folder)
    index = folder / "order.json"  # Written last: no dump without it.
    if index.exists():
        raise FileExistsError(f"{folder} has a dump; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in inputs.items():
        array = _array(value)
        if array is None:
            raise ValueError(f"{name} is a {type(value).__name__}; give a tensor")
        np.save(folder / f"input.{name}.npy", array)
    order = _run(model, call, folder, limit)
    if not order:
        raise ValueError("the call did not run the model")
    index.write_text(json.dumps({"network": network, "inputs": sorted(inputs), "order": order}))


def _run(
    model: torch.nn.Module, call: Callable[[], object], folder: pathlib.Path, limit: int
) -> list[dict]:
    """Returns the records of all outputs in the order in which modules finished."""
    order: list[dict] = []

    def watch(name: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, given: object, output: object) -> None:
            array = _array(output)
            if array is not None:
                file = f"{len(order):05d}.npy"
                # Odd, so that it visits all channels, whose number has many factors of 2.
                stride = 1 if array.size <= limit else math.ceil(array.size / limit) | 1
                np.save(folder / file, array.reshape(-1)[::stride])
                order.append({"name": name, "file": file, "shape": array.shape, "stride": stride})

        return keep

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _array(value: Any) -> np.ndarray | None:
    """Returns the first tensor of an output, copied now: it may yet be changed in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", torch.float32, copy=True).numpy()
    if isinstance(value, (np.ndarray, int, float)):
        return np.array(value, np.float32)
    if isinstance(value, dict):
        # CLIP's transformer returns all tokens, too; the pooled one is what goes on.
        value = (value.get("pooler_output"), *value.values())
        value = [each for each in value if each is not None]
    return _array(value[0]) if isinstance(value, (tuple, list)) and value else None
