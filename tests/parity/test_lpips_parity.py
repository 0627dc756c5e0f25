"""LPIPS is that of torchmetrics, which the release uses; torchvision's trunks are written here.

There is no build of torchvision for CPUs alone beside torch's.
"""

import jax
import jax.numpy as jnp
import pytest
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from o3d_jax.nn.lpips import Lpips
from o3d_jax.weights.pytorch.names import to_torch
from support.originals import evaluate, tensor
from support.quick import jit
from support.synthetic import synthetic_variables
from support.trunks import TRUNKS

pytestmark = pytest.mark.parity


def original(network: str, params, monkeypatch) -> nn.Module:
    """torchmetrics' module with our parameters: convolutions and channel weights are in order."""
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_: TRUNKS[network]())
    module = torchmetrics_lpips._LPIPS(pretrained=False, net=network, pnet_rand=True)
    convolutions = [m for m in module.net.modules() if isinstance(m, nn.Conv2d)]
    weights = [m for lin in module.lins for m in lin.modules() if isinstance(m, nn.Conv2d)]
    ours = [*sorted(n for n in params if n[0] == "c"), *sorted(n for n in params if n[0] == "l")]
    for name, layer in zip(ours, convolutions + weights, strict=True):
        found = {"weight": tensor(to_torch((name, "kernel"), params[name]["kernel"]))}
        if "bias" in params[name]:
            found["bias"] = tensor(params[name]["bias"])
        layer.load_state_dict(found, strict=True)
    return module.eval()


@pytest.mark.parametrize(("network", "h", "w"), [("vgg", 21, 34), ("alex", 51, 38)])
def test_distance_is_torchmetrics(network, h, w, monkeypatch):
    ours = Lpips(network=network)
    a, b = jax.random.uniform(jax.random.key(0), (2, 3, h, w, 3))
    params = synthetic_variables(ours, a, b)["params"]
    # The published channel weights are not negative.
    params |= {n: jax.tree.map(jnp.abs, p) for n, p in params.items() if n[0] == "l"}
    module = original(network, params, monkeypatch)

    def distance(module, *images):
        images = (x.movedim(-1, 1) for x in images)
        return module(*images, normalize=True).flatten()

    expected = evaluate(module, distance, a, b)
    assert expected.exact.min() > 0.01
    expected.check(jit(ours.apply)({"params": params}, a, b))
