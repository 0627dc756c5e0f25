"""PSNR, SSIM and LPIPS are those of torchmetrics and of LPIPS's own package."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from o3d_jax.metrics import lpips, psnr, ssim
from o3d_jax.nn.lpips import Lpips
from o3d_jax.weights.pytorch.names import to_torch
from support.originals import evaluate, tensor
from support.quick import jit
from support.synthetic import synthetic_variables
from support.trunks import TRUNKS

pytestmark = pytest.mark.parity


def pair(h, w):
    """Smooth images on white, as renders of objects are, and copies with faults of two kinds."""
    rng = np.random.default_rng(0)
    y, x = np.linspace(-1, 1, h)[:, None, None], np.linspace(-1, 1, w)[None, :, None]
    phase = rng.uniform(0, 6, (3, 1, 1, 3))
    a = np.where(x**2 + y**2 < 0.6, 0.5 + 0.4 * np.sin(4 * x + 5 * y + phase), 1.0)
    b = (0.9 * np.roll(a, 1, axis=2) + 0.05 * rng.standard_normal(a.shape)).clip(0, 1)
    return a.astype(np.float32), b.astype(np.float32)


def torch_layout(images):
    return tensor(images).movedim(-1, 1)


def test_psnr_is_torchmetrics():
    a, b = pair(37, 50)
    expected = peak_signal_noise_ratio(
        torch_layout(b), torch_layout(a), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    # float32, of about 20 dB.
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", [1.5, 2.1])
def test_ssim_is_torchmetrics(sigma):
    """Its window with a Gaussian is as wide as 7 deviations, as scikit-image's: 11 and 15.

    It averages over windows around all pixels, and has a map of them; those that lie inside the
    image are those that we and scikit-image have by default.
    """
    a, b = pair(37, 50)
    window = 2 * int(3.5 * sigma + 0.5) + 1
    whole, local = structural_similarity_index_measure(
        *(torch_layout(x).double() for x in (a, b)),
        sigma=sigma,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    edge = window // 2
    inside = local[..., edge:-edge, edge:-edge].mean(dim=(1, 2, 3))
    # Variances are differences of numbers near 1 in float32 (6e-8) against c2 = 9e-4.
    limit = 2e-4
    a, b = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(ssim(a, b, window, sigma, "reflected"), whole, atol=limit)
    np.testing.assert_allclose(ssim(a, b, window, sigma), inside, atol=limit)
    assert abs(whole - inside).max() > 10 * limit


@pytest.fixture
def lpips_package(monkeypatch):
    """It takes its trunks from torchvision, of which there may be no build beside this torch."""
    pytest.importorskip("scipy")
    models = types.SimpleNamespace(
        vgg16=lambda pretrained: types.SimpleNamespace(features=TRUNKS["vgg"]()),
        alexnet=lambda pretrained: types.SimpleNamespace(features=TRUNKS["alex"]()),
    )
    stand_in = types.ModuleType("torchvision")
    stand_in.models = models  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)
    package = pytest.importorskip("lpips")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        del sys.modules[name]


def with_weights(package, network, params) -> nn.Module:
    """The package's module; its trunk is in order of layers, as ours."""
    module = package.LPIPS(
        pretrained=False, net=network, pnet_rand=True, use_dropout=False, verbose=False
    )
    layers = [m for m in module.net.modules() if isinstance(m, nn.Conv2d)]
    layers += [m for lin in module.lins for m in lin.modules() if isinstance(m, nn.Conv2d)]
    names = [*sorted(n for n in params if n[0] == "c"), *sorted(n for n in params if n[0] == "l")]
    for name, layer in zip(names, layers, strict=True):
        found = {"weight": tensor(to_torch((name, "kernel"), params[name]["kernel"]))}
        if "bias" in params[name]:
            found["bias"] = tensor(params[name]["bias"])
        layer.load_state_dict(found, strict=True)
    return module.eval()


@pytest.mark.parametrize(("network", "h", "w"), [("vgg", 32, 21), ("alex", 51, 38)])
def test_lpips_is_that_of_its_own_package(lpips_package, network, h, w):
    a, b = (jnp.asarray(x) for x in pair(h, w))
    params = synthetic_variables(Lpips(network), a, b)["params"]
    # The published channel weights are not negative.
    params |= {n: jax.tree.map(jnp.abs, p) for n, p in params.items() if n[0] == "l"}

    def distance(module, *images):
        return module(*(x.movedim(-1, 1) for x in images), normalize=True).flatten()

    expected = evaluate(with_weights(lpips_package, network, params), distance, a, b)
    assert expected.exact.min() > 0.01
    found = jit(lpips, static_argnums=3)(params, a, b, network)
    expected.check(found)
