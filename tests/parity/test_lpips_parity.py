"""LPIPS is that of torchmetrics, which the release uses; torchvision's trunks are written here.

There is no build of torchvision for CPUs alone beside torch's.
"""

import jax
import jax.numpy as jnp
import pytest
from originals import evaluate, tensor
from quick import jit
from synthetic import synthetic_variables
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from o3d_jax.io.names import to_torch
from o3d_jax.nn.lpips import Lpips

pytestmark = pytest.mark.parity


def alexnet() -> nn.Sequential:
    """torchvision's `alexnet().features`."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    return nn.Sequential(*layers)


def vgg16() -> nn.Sequential:
    """torchvision's `vgg16().features`."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, *(512, 512, 512, 0) * 2):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


TRUNKS = {"alex": alexnet, "vgg": vgg16}


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
