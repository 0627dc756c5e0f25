"""What benchmarks/splat.py measures, and the Markdown that tells it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of work."""

    gaussians: int
    pixels: int
    """Side of the square pictures."""

    views: int

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels, self.pixels

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.gaussians}x{self.pixels}x{self.views}"

    @property
    def words(self) -> str:
        """As in a table."""
        return f"{self.gaussians:,} at {self.pixels} px, {self.views} view{'s'[: self.views > 1]}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Repeats of one thing, in s."""

    cost: Float[np.ndarray, " r"]
    """Seconds of the processor on a CPU, of the clock on the wall on a GPU."""

    system: Float[np.ndarray, " r"]
    """What the operating system took of the processor: memory that was handed out."""

    wall: Float[np.ndarray, " r"]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one renderer, scene and size."""

    forward: Timing
    gradient: Timing
    """Forward and backward."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """gsplat's results against ours, with every alpha below both clamps."""

    picture: float
    """Greatest difference of any color or alpha, in [0, 1]."""

    pixels_off: float
    """Share of pixels whose color or alpha differs by more than 1e-3."""

    gradient: float
    """Relative L2 distance, the greatest over the fields of the Gaussians."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """gsplat beside ours."""

    costs: Costs
    search: float
    """Processor seconds of a forward pass in our stand-in for its search; 0 on a GPU."""

    peak_mb: float
    """Memory that forward and backward need at most."""

    repeats: bool
    """Whether a second run agrees to the last bit."""

    agreement: Agreement


@dataclasses.dataclass(frozen=True)
class Row:
    """One scene at one size."""

    kind: str
    ours: Costs
    repeats: bool
    """Whether a second run of ours agrees to the last bit, gradients included."""

    by_vmap: Costs | None
    """The same by `vmap` over views; None for one view."""

    gsplat: Comparison | None


@dataclasses.dataclass(frozen=True)
class Program:
    """What holds for all scenes of a size."""

    compile_walls: Float[np.ndarray, "2"]
    """Seconds for forward, and for the gradient, by the clock on the wall."""

    compile_processor: Float[np.ndarray, "2"]
    """The same by the processor's."""

    temporaries_mb: tuple[float, float]
    """Forward; gradient."""

    peak_mb: float
    """Memory that forward and backward need at most."""

    recompilations: int
    """When all values change."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One size."""

    case: Case
    program: Program
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and with what."""

    words: str
    on_gpu: bool


def report(results: Sequence[Result], machine: Machine, command: str) -> str:
    """The whole file."""
    clock = "milliseconds on the wall" if machine.on_gpu else "processor seconds"
    memory = "device memory" if machine.on_gpu else "growth of the process"
    parts = [
        "# The rasterizer's speed",
        f"Made by `{command}`: {machine.words}.",
        f"Times are {clock}, the least of the repeats and in brackets their median; what stands "
        "in one row was run in turns. Ratios are gsplat's time over ours. Ours differentiates "
        "with respect to Gaussians, camera poses and background; gsplat to the Gaussians.",
        _times(results, 1e3 if machine.on_gpu else 1),
    ]
    if any(row.gsplat for result in results for row in result.rows):
        parts += ["## gsplat", _CPU_NOTE if not machine.on_gpu else "", _baselines(results)]
    parts += [
        "## Programs",
        "Compilation in seconds, forward + gradient. Memory in MB: what XLA sets aside for forward "
        f"/ gradient, and the peak ({memory} while forward and backward run). `vmap` over views "
        "against the loop as a ratio of the least times.",
        _programs(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_CPU_NOTE = (
    "gsplat here is its own PyTorch implementation on one thread. It does not run on a CPU as "
    "shipped: the stand-ins for its CUDA parts (benchmarks/gsplat_cpu.py) are ours; the column "
    "*search* is the time of a forward pass in the one that finds the pairs of a Gaussian and a "
    "pixel, *system* what the operating system takes to hand out memory. Pictures and gradients "
    "are compared where no opacity exceeds 0.99, since the two clamp alpha at different values."
)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _times(results: Sequence[Result], scale: float) -> str:
    head = ["Gaussians", "scene", "forward", "gsplat", "ratio"]
    head += ["forward + backward", "gsplat", "ratio", "ours, wall"]
    rows = []
    for result in results:
        for row in result.rows:
            other = row.gsplat.costs if row.gsplat else None
            cells = [result.case.words, row.kind]
            for name in ("forward", "gradient"):
                mine: Timing = getattr(row.ours, name)
                theirs: Timing | None = getattr(other, name) if other else None
                cells.append(_seconds(mine, scale))
                cells.append(_seconds(theirs, scale) if theirs else "")
                cells.append(f"{theirs.cost.min() / mine.cost.min():.1f}" if theirs else "")
            walls = (row.ours.forward.wall, row.ours.gradient.wall)
            rows.append([*cells, " / ".join(_digits(scale * wall.min()) for wall in walls)])
    return _table(head, rows)


def _baselines(results: Sequence[Result]) -> str:
    head = ["Gaussians", "scene", "search", "system, forward / + backward", "peak MB"]
    head += ["greatest difference", "pixels off by > 0.001", "gradients, rel. L2", "repeats"]
    rows = []
    for result in results:
        for row in result.rows:
            found = row.gsplat
            if found is None:
                why = f"left out: it needs about {result.case.views} times the memory of one view"
                rows.append([result.case.words, row.kind, why, *[""] * 6])
                continue
            system = (found.costs.forward.system, found.costs.gradient.system)
            rows.append(
                [
                    result.case.words,
                    row.kind,
                    _digits(found.search),
                    " / ".join(_digits(float(np.median(x))) for x in system),
                    f"{found.peak_mb:,.0f}",
                    f"{found.agreement.picture:.1e}",
                    f"{found.agreement.pixels_off:.1e}",
                    f"{found.agreement.gradient:.1e}",
                    "exactly" if found.repeats else "no",
                ]
            )
    return _table(head, rows)


def _programs(results: Sequence[Result]) -> str:
    head = ["Gaussians", "scene", "compile, wall", "processor", "temporaries", "peak"]
    head += ["vmap / loop", "with backward", "recompilations", "repeats"]
    rows = []
    for result in results:
        program = result.program
        for row in result.rows:
            vmap = ["", ""]
            if row.by_vmap:
                pairs = [
                    (row.by_vmap.forward, row.ours.forward),
                    (row.by_vmap.gradient, row.ours.gradient),
                ]
                vmap = [f"{a.cost.min() / b.cost.min():.2f}" for a, b in pairs]
            rows.append(
                [
                    result.case.words,
                    row.kind,
                    " + ".join(f"{x:.1f}" for x in program.compile_walls),
                    " + ".join(f"{x:.1f}" for x in program.compile_processor),
                    " / ".join(f"{x:.0f}" for x in program.temporaries_mb),
                    f"{program.peak_mb:.0f}",
                    *vmap,
                    str(program.recompilations),
                    "exactly" if row.repeats else "no",
                ]
            )
    return _table(head, rows)


def _seconds(timing: Timing, scale: float) -> str:
    low, middle = scale * timing.cost.min(), scale * np.median(timing.cost)
    return f"{_digits(low)} ({_digits(float(middle))})"


def _digits(x: float) -> str:
    """Three digits, without an exponent."""
    return f"{x:.3f}" if x < 1 else f"{x:.2f}" if x < 10 else f"{x:.1f}"
