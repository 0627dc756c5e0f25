"""Services that get the log as well: asked for by name, refused by name."""

import dataclasses
import sys
from types import ModuleType

import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.files.images import to_bytes
from o3d_jax.run.log import RunLog
from support.step_reports import report


class Fake(ModuleType):
    """A service that remembers; as far as we use them both are alike."""

    class Error(Exception):
        pass

    def __init__(self, name):
        super().__init__(name)
        self.inits, self.logged, self.finished = [], [], 0
        self.refuses = False

    def init(self, **options):
        if self.refuses:
            raise self.Error("no API key")
        self.inits.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def Histogram(self, values):  # noqa: N802
        return ("histogram", np.asarray(values))

    def Image(self, image):  # noqa: N802
        return ("image", image)


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    fake = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


@pytest.fixture
def config(tiny, service):
    train = dataclasses.replace(tiny.train, trackers=(service.__name__,), log_every=2)
    return dataclasses.replace(tiny, train=train)


def test_a_service_gets_config_numbers_levels_and_pictures(tmp_path, config, service):
    with RunLog(tmp_path, config) as log:
        log.start()
        for step in (1, 2):
            log.record(step, report(step, sigma=(1, np.e)), (), 0.0)
        log.image(2, np.full((3, 5, 3), 0.5))
    (options,) = service.inits
    assert options["project"] == "o3d_jax" and options["name"].startswith("tiny")
    assert options["config"]["optim"]["learning_rate"] == 1e-3
    (first, numbers), (_, levels), (_, pictures) = service.logged
    assert first == 2 and numbers["total"] == 1.5 and "step" not in numbers
    np.testing.assert_allclose(levels["log_sigma"][1], [0, 1, 0, 1], atol=1e-6)
    assert (pictures["evaluation"][1] == 128).all() and pictures["evaluation"][1].shape == (3, 5, 3)
    assert service.finished == 1


def test_a_resumed_run_is_the_same_one_for_a_service_and_another_folder_is_not(
    tmp_path, config, service
):
    def run(folder, step):
        with RunLog(folder, config, step):
            pass
        return {key: service.inits[-1].get(key) for key in ("name", "id", "resume")}

    first, resumed, other = run(tmp_path / "a", 0), run(tmp_path / "a", 2), run(tmp_path / "b", 0)
    assert first == resumed and first["resume"] == "allow"
    assert first != other


def test_a_service_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path, config, service, monkeypatch
):
    monkeypatch.setitem(sys.modules, service.__name__, None)
    with pytest.raises(InputError, match=f"pip install {service.__name__}"):
        RunLog(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_what_wandb_refuses_is_said_with_the_remedy(tmp_path, config, service):
    if service.__name__ == "wandb":
        service.refuses = True
        with pytest.raises(InputError, match="no API key; .*WANDB_MODE=offline"):
            RunLog(tmp_path, config)


def test_pictures_are_rounded_to_bytes_and_what_is_out_of_range_is_cut():
    image = np.array([-1.0, 0.0, 0.5 / 255, 0.51 / 255, 1.0, 7.0]).reshape(1, 2, 3)
    np.testing.assert_array_equal(to_bytes(image).ravel(), [0, 0, 0, 1, 255, 255])
