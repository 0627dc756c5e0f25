"""What an evaluation measures: three metrics of views and renders, and means over objects."""

import functools
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from o3d_jax.evaluation.protocol import IntervalsProtocol, MetricsProtocol, Protocol
from o3d_jax.metrics import lpips, psnr, ssim

Value = TypeVar("Value")


@dataclass(frozen=True)
class PerMetric(Generic[Value]):
    """One value for each metric."""

    psnr: Value
    """Peak signal-to-noise ratio in dB; more is better."""
    ssim: Value
    """Structural similarity, at most 1; more is better."""
    lpips: Value | None
    """Perceptual distance, at least 0; less is better. None without weights to measure it with."""

    def measured(self) -> list[str]:
        """Returns the names of the metrics that have a value."""
        return [name for name in METRICS if getattr(self, name) is not None]


METRICS = ("psnr", "ssim", "lpips")
"""The names of `PerMetric`'s fields."""


PerView = PerMetric[Float[np.ndarray, " v"]]


@dataclass(frozen=True)
class ShapeScore(Generic[Value]):
    """What a mesh of the Gaussians is like beside the true one; see `evaluation.shapes`."""

    silhouette: Value
    """Intersection over union of their silhouettes, of all cameras together; at most 1."""
    chamfer: Value
    """Chamfer distance in percent of the true mesh's diagonal; less is better."""
    fscore: Value
    """F-score at 1 % of the diagonal, at most 1."""

    def values(self) -> list[Value]:
        """Returns the three of them, in this order."""
        return [self.silhouette, self.chamfer, self.fscore]


NO_SHAPE = ShapeScore(silhouette=0.0, chamfer=100.0, fscore=0.0)
"""The score of an object that has no surface: nothing is right, and all is a diagonal away."""


class OrbitScore(NamedTuple):
    """The numbers of one orbit, for each view, the input first."""

    object_name: str
    orbit_name: str
    views: PerView
    """Scores of generated views."""
    renders: PerView
    """Scores of renders of the Gaussians."""
    copied: PerView
    """Scores of the input, taken for each view: what a model has to be better than."""
    shape: ShapeScore[float] | None = None
    """Scores of a mesh of the Gaussians; None where there was no true one."""


class Interval(NamedTuple):
    """A number over objects, and its confidence interval; without one for a single object."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Means over objects."""

    views: PerMetric[Interval]
    renders: PerMetric[Interval]
    delta: PerMetric[Interval]
    """The absolute difference between the two means: the last columns of Table 2."""
    copied: PerMetric[Interval]
    input_views: PerMetric[Interval]
    """The scores of the input view alone."""
    input_renders: PerMetric[Interval]
    shape: ShapeScore[Interval] | None = None


def measure(
    metrics: MetricsProtocol,
    weights: Any,
    images: Float[np.ndarray, "v h w 3"],
    truth: Float[np.ndarray, "v h w 3"],
) -> PerView:
    """Returns the metrics of each view; images are clipped to [0, 1], as a viewer would see them.

    `weights` are LPIPS's parameters; None leaves it out.
    """
    found = _measure(metrics, weights, jnp.asarray(images), jnp.asarray(truth))
    return PerMetric(*(None if x is None else np.asarray(x) for x in found))  # pyright: ignore


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    metrics: MetricsProtocol,
    weights: Any,
    images: Float[Array, "v h w 3"],
    truth: Float[Array, "v h w 3"],
) -> tuple[Float[Array, " v"], Float[Array, " v"], Float[Array, " v"] | None]:
    images = jnp.clip(images, 0, 1)
    size = None if metrics.lpips_size == "compared" else metrics.lpips_size
    return (
        jnp.minimum(psnr(images, truth), metrics.psnr_most),
        ssim(images, truth, metrics.ssim_window, metrics.ssim_sigma, metrics.ssim_border),
        None if weights is None else lpips(weights, images, truth, metrics.lpips_network, size),
    )


def summarize(protocol: Protocol, scores: list[OrbitScore]) -> Summary:
    """Returns means over objects of means over an object's orbits and the views of each."""
    counted = slice(1 if protocol.views.input_view == "apart" else 0, None)
    objects = [[s for s in scores if s.object_name == name] for name in object_names(scores)]
    draws = resamples(protocol.intervals, len(objects))

    # An object counts once, however many orbits it has: its views are not independent.
    def over(field: str, part: slice) -> PerMetric[Float[np.ndarray, " n"]]:
        return _stack([_object_mean([getattr(s, field) for s in own], part) for own in objects])

    views, renders = (over(field, counted) for field in ("views", "renders"))
    coverage = protocol.intervals.coverage

    def means(values: PerMetric[Float[np.ndarray, " n"]]) -> PerMetric[Interval]:
        return _per_metric(lambda x: mean_interval(x, draws, coverage), values)

    def shape_means() -> ShapeScore[Interval] | None:
        own = [[s.shape.values() for s in orbits if s.shape is not None] for orbits in objects]
        if not all(own):
            return None
        columns = np.stack([np.mean(values, axis=0) for values in own], axis=1)
        return ShapeScore(*(mean_interval(column, draws, coverage) for column in columns))

    return Summary(
        views=means(views),
        renders=means(renders),
        delta=_per_metric(lambda a, b: delta_interval(a, b, draws, coverage), views, renders),
        copied=means(over("copied", counted)),
        input_views=means(over("views", slice(1))),
        input_renders=means(over("renders", slice(1))),
        shape=shape_means(),
    )


def object_names(scores: list[OrbitScore]) -> list[str]:
    """Returns all objects, in the order in which they were evaluated."""
    return list(dict.fromkeys(score.object_name for score in scores))


def resamples(intervals: IntervalsProtocol, objects: int) -> Int[np.ndarray, "draws {objects}"]:
    """Returns draws of as many objects as there are, with replacement; the same for each number."""
    rng = np.random.default_rng(intervals.seed)
    return rng.integers(objects, size=(intervals.draws, objects))


def mean_interval(
    values: Float[np.ndarray, " n"], draws: Int[np.ndarray, "draws n"], coverage: float
) -> Interval:
    """Returns the mean, and the middle `coverage` of the means of resamples."""
    values = values.astype(np.float64)
    return _interval(values.mean(), values[draws].mean(axis=1), coverage, len(values))


def delta_interval(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    draws: Int[np.ndarray, "draws n"],
    coverage: float,
) -> Interval:
    """Returns the absolute difference of two means over the same objects, with its interval.

    Differences of single objects cancel in it, as in the paper's, whose smallest is 0.009 dB.
    """
    gaps = a.astype(np.float64) - b.astype(np.float64)
    signed = _interval(gaps.mean(), gaps[draws].mean(axis=1), coverage, len(gaps))
    if signed.low is None or signed.high is None:
        return signed._replace(value=abs(signed.value))
    # Without its sign; an interval that has 0 in it starts there.
    least, most = sorted((abs(signed.low), abs(signed.high)))
    least = 0.0 if signed.low <= 0 <= signed.high else least
    return Interval(abs(signed.value), least, most)


def _interval(
    mean: float | np.floating,
    resampled: Float[np.ndarray, " draws"],
    coverage: float,
    objects: int,
) -> Interval:
    if objects < 2:
        return Interval(float(mean), None, None)
    low, high = np.quantile(resampled, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(float(mean), float(low), float(high))


def _object_mean(orbits: list[PerView], part: slice) -> PerMetric[float]:
    means = [_per_metric(lambda x: float(x[part].mean()), orbit) for orbit in orbits]
    return _per_metric(lambda x: float(x.mean()), _stack(means))


def _stack(rows: list[PerMetric[float]]) -> PerMetric[Float[np.ndarray, " n"]]:
    return _per_metric(lambda *values: np.array(values), *rows)


def _per_metric(function: Any, *values: PerMetric[Any]) -> PerMetric[Any]:
    """Returns the function of each metric that was measured."""
    columns = ([getattr(value, name) for value in values] for name in METRICS)
    return PerMetric(*(None if c[0] is None else function(*c) for c in columns))
