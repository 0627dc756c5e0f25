"""What models see and score, as a version promises it: evaluations that broke off rely on it."""

from pathlib import Path

import numpy as np
import pytest

from o3d_jax.data.orbits.folder import RenderedOrbit, write_orbit
from o3d_jax.evaluation import progress
from o3d_jax.evaluation.data import OrbitName, read_sample
from o3d_jax.evaluation.protocol import read_protocol
from o3d_jax.evaluation.scores import measure
from o3d_jax.geometry.orbits import orbit_poses

PROTOCOL = read_protocol("orbits")
PINNED = Path(__file__).with_name(f"version_{progress.SCORES_VERSION}.npz")


@pytest.fixture
def sample(tmp_path, tiny):
    """Soft discs, half transparent at their rims, of 40 px; the tiny model sees 16."""
    y, x = np.mgrid[:40, :40] / 40 - 0.5
    azimuths = np.arange(8) * 45.0
    rgba = np.zeros((8, 40, 40, 4), np.uint8)
    for frame, azimuth in zip(rgba, np.deg2rad(azimuths), strict=True):
        distance = np.hypot(x - 0.2 * np.cos(azimuth), y - 0.1 * np.sin(azimuth))
        frame[..., 3] = np.clip(1020 - 3000 * distance, 0, 255)
        frame[..., :3] = np.stack([200 - 300 * distance, 120 + 200 * x, 90 - 100 * y], -1)
    orbit = RenderedOrbit("disc/0", rgba, orbit_poses(12.0, azimuths, 1.5), 49.1)
    write_orbit(tmp_path / "disc/0", orbit)
    return read_sample(tmp_path, OrbitName("disc", "disc/0"), PROTOCOL, tiny)


def test_a_version_stands_for_its_images_and_scores(tmp_path, sample):
    wrong = np.roll(sample.truth, 1, axis=2) * np.float32(0.9)
    scores = measure(PROTOCOL.metrics, None, wrong, sample.truth)
    found = {
        "image": sample.image,
        "truth": sample.truth,
        "camera_to_world": np.asarray(sample.cameras.camera_to_world),
        "psnr": scores.psnr,
        "ssim": scores.ssim,
    }
    np.savez(tmp_path / PINNED.name, **found)
    with np.load(PINNED) as pinned:
        assert set(pinned) == set(found)
        for name, value in found.items():
            # Rounding of float32, and of decibels near 10.
            tolerance = {"rtol": 0, "atol": 1e-4 if name == "psnr" else 1e-5}
            message = (
                f"{name} is not that of version {progress.SCORES_VERSION}; if that was meant, "
                f"raise SCORES_VERSION and add {tmp_path / PINNED.name} under the new number"
            )
            np.testing.assert_allclose(value, pinned[name], **tolerance, err_msg=message)


def test_another_version_goes_on_with_nothing(monkeypatch):
    facts = ["orbits", {"levels": 16}]
    before = progress.key_of(facts)
    assert progress.key_of(facts) == before != progress.key_of(["orbits", {"levels": 17}])
    monkeypatch.setattr(progress, "SCORES_VERSION", progress.SCORES_VERSION + 1)
    assert progress.key_of(facts) != before
