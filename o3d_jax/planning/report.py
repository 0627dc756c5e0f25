"""What a compiled program needs of a machine, and how to say it."""

import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from o3d_jax.config import Config
from o3d_jax.planning.collectives import Collectives, collectives
from o3d_jax.planning.operations import Operation, most, operations
from o3d_jax.planning.topologies import FREE_SHARE, GIB, Topology
from o3d_jax.run.flops import count_jaxpr


class Held(NamedTuple):
    """What lies in the memory of one device while a program runs, whether it reads it or not."""

    parameters: int
    average: int
    optimizer: int
    frozen: int
    objects: int
    """The batch, or the images and cameras that the sampler reads, or what a level starts from."""


class Planned(NamedTuple):
    """A program to weigh."""

    program: str
    objects: int
    """In a batch, over all devices."""
    traced: jax.stages.Traced
    held: Held
    read: int
    """Bytes of it that the program reads, on one device."""


class Bytes(NamedTuple):
    """What the memory of one device holds while a program runs in training."""

    parameters: int
    average: int
    """Exponential moving average of the parameters."""
    optimizer: int
    frozen: int
    objects: int
    """The batch, or the images and cameras that the sampler reads, or an update's gradient."""
    padding: int
    """What the arguments take beyond their sizes, because of the chip's layout."""
    outputs: int
    """Those that take no argument's place."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return sum(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program weighed for a machine."""

    program: str
    topology: str
    compiler: str
    devices: int
    objects: int
    """In a batch, over all devices."""
    bytes: Bytes | None
    """None: the compiler gave up for want of memory."""
    needed: int
    """Bytes of memory on each device."""
    available: int
    """Bytes that a program can have there."""
    flops: float
    """Executed in one call, on one device; as counted, what is recomputed counts again."""
    read_and_written: float | None
    """Bytes between memory and processor in one call on one device, those in loops as if they
    turned once; None where the compiler does not say."""
    collectives: tuple[Collectives, ...] | None
    """None where the compiler gave up."""
    seconds: "Seconds"
    most_flops: tuple[Operation, ...]
    """The operations with the most arithmetic, on one device."""
    most_bytes: tuple[Operation, ...]
    """Those that read and write the most."""
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether it would run."""
        return self.needed <= self.available

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values, for JSON."""
        values = dataclasses.asdict(self)
        for name in ("bytes", "seconds"):
            part = getattr(self, name)
            values[name] = None if part is None else part._asdict()
        for name in ("collectives", "most_flops", "most_bytes"):
            found = getattr(self, name)
            values[name] = None if found is None else [each._asdict() for each in found]
        return values | {"fits": self.fits}


class Seconds(NamedTuple):
    """Least times of one call, by what limits it (roofline)."""

    compute: float
    memory: float | None
    """None where the compiler does not say what is read and written."""
    links: float
    products: float
    """All products and kernels one after another, each as long as its arithmetic or its traffic
    takes, whichever is more (`planning/operations.py`)."""

    @property
    def least(self) -> float:
        """The longest of these, as if the others went on meanwhile, all at their peaks."""
        return max(self.compute, self.memory or 0, self.links, self.products)


def weigh(work: Planned, topology: Topology, start: float) -> Plan:
    """Compiles a traced program and returns what it needs; `start` is when work on it began."""
    chip, devices = topology.chip, len(topology.devices)
    kind = topology.devices[0].platform
    flops = count_jaxpr(work.traced.jaxpr).total / devices
    found = operations(work.traced.jaxpr.jaxpr, "tpu" if kind == "tpu" else "cuda")

    # Not all memory is a program's: the runtime and fragmentation have their part.
    available = int(FREE_SHARE["tpu" if kind == "tpu" else "gpu"] * chip.memory)

    # Where the compiler gives up, its complaint still says how much would be needed.
    known: dict[str, Any] = {"bytes": None, "collectives": None, "read_and_written": None}
    try:
        compiled, text = compile_and_show(work.traced)
    except jax.errors.JaxRuntimeError as error:
        complaint = str(error)
        needed, available = _exhausted(complaint)
        if "temporaries" in complaint:  # Otherwise all is in it.
            needed += sum(work.held)
    else:
        sizes = _bytes(compiled, work)
        needed = sizes.total
        known["bytes"] = sizes
        known["collectives"] = collectives(text)
        known["read_and_written"] = (compiled.cost_analysis() or {}).get("bytes accessed")

    # The roofline: each resource at its peak, as if it alone were in the way.
    read_and_written = known["read_and_written"]
    seconds = Seconds(
        compute=flops / chip.flops,
        memory=None if read_and_written is None else read_and_written / chip.memory_rate,
        links=sum(c.on_links(devices) for c in known["collectives"] or ()) / chip.link_rate,
        products=sum(each.seconds(chip.flops, chip.memory_rate) for each in found),
    )

    return Plan(
        program=work.program,
        topology=topology.name,
        compiler=topology.compiler,
        devices=devices,
        objects=work.objects,
        needed=needed,
        available=available,
        flops=flops,
        seconds=seconds,
        most_flops=tuple(most(found, "flops")),
        most_bytes=tuple(most(found, "bytes")),
        compile_seconds=time.perf_counter() - start,
        **known,
    )


_AMOUNT = r"([\d.]+)([KMGT]?)i?B?"
_TOO_MUCH = re.compile(
    rf"\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)|Used {_AMOUNT} of {_AMOUNT} hbm",
    re.IGNORECASE,
)
"""How libtpu and XLA:GPU say that a program needs more memory than there is."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_and_show(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, str]:
    """Compiles a traced program; returns it, and the text of what the compiler made of it.

    The compiler writes the text: `Compiled.as_text` fails on programs of libtpu 0.0.52 in which
    asynchronous operations take several operands (those for v5p and v6e do).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = traced.lower().compile(compiler_options=options)
        texts = Path(folder).glob("*after_optimizations.txt")
        # The program itself, should there be others, of constants.
        return compiled, max(texts, key=lambda path: path.stat().st_size).read_text()


def _exhausted(message: str) -> tuple[int, int]:
    """Returns the bytes asked for, and all there are, as the compiler's complaint tells them.

    Raises:
        RuntimeError: the complaint is about something else.
    """
    found = _TOO_MUCH.search(message)
    if found is None:
        raise RuntimeError(f"the compiler failed: {message}")
    used, used_unit, size, size_unit = (part for part in found.groups() if part is not None)
    return _scaled(used, used_unit), _scaled(size, size_unit)


def _scaled(amount: str, unit: str) -> int:
    return int(float(amount) * _UNITS[unit.upper()])


def _bytes(compiled: jax.stages.Compiled, work: Planned) -> Bytes:
    """Returns what a device holds while a compiled program runs."""
    memory: Any = compiled.memory_analysis()
    return Bytes(
        **work.held._asdict(),
        padding=max(memory.argument_size_in_bytes - work.read, 0),
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


def held(tree: Any) -> int:
    """Returns the bytes that one device holds of arrays, or of shapes with places.

    What is offloaded to the host's memory is not among them.
    """
    return sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
        for a in jax.tree.leaves(tree)
        if a.sharding.memory_kind != "pinned_host"
    )


def heading(config: Config, topology: Topology, trains: bool = True) -> str:
    """Returns what is planned, and for what machine, in two lines."""
    chip, train = topology.chip, config.train
    remat = config.model.remat_keeps if config.model.remat else "off"
    training = (
        f"batch {train.batch_size} in {train.accumulate} parts, ZeRO stage {train.zero} over "
        f"{train.fsdp or len(topology.devices)} devices, remat {remat}, "
    )
    return "\n".join(
        [
            f"{config.name} on {topology.name}: {len(topology.devices)} x {chip.name}, "
            f"{chip.memory / GIB:.1f} GiB each; compiled by {topology.compiler}",
            f"{training if trains else 'one object on one device, '}{config.model.dtype}, "
            f"effort {jax.config.values['jax_optimization_level']}",
        ]
    )


def plan_report(plan: Plan) -> str:
    """Returns a plan as a small table."""
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"{plan.program} of {plan.objects} objects: {verdict}, {plan.needed / GIB:.2f} of "
        f"{plan.available / GIB:.2f} GiB a device; compiled in {plan.compile_seconds:.0f} s"
    ]
    if plan.bytes is not None:
        lines += [f"  {name:<12} {n / GIB:8.3f} GiB" for name, n in plan.bytes._asdict().items()]

    lines.append(f"  {plan.flops / 1e12:.2f} TFLOP a device")
    if plan.read_and_written is not None:
        traffic = plan.read_and_written / GIB
        lines.append(f"  {traffic:.1f} GiB read and written a device, turns of loops counted once")
    lines += [
        f"  {c.kind:<20} {c.count:6} x, {c.bytes / GIB:8.3f} GiB of results a device"
        for c in plan.collectives or ()
    ]

    # Compilers count a loop's body once, however often it turns, so this is a lower bound.
    s = plan.seconds
    memory = "not known" if s.memory is None else f"{s.memory:.3g} s (loops counted once)"
    lines.append(
        f"  at least {s.least:.3g} s: arithmetic {s.compute:.3g} s, memory {memory}, "
        f"links {s.links:.3g} s, each at its peak; products one by one {s.products:.3g} s"
    )
    lines += [f"  most {by}: {_named(each)}" for by, each in _heaviest(plan)]
    return "\n".join(lines)


def _heaviest(plan: Plan) -> list[tuple[str, Operation]]:
    both = (("arithmetic", plan.most_flops), ("traffic", plan.most_bytes))
    return [(by, each) for by, several in both for each in several]


def _named(each: Operation) -> str:
    amounts = f"{each.flops / 1e12:.3g} TFLOP, {each.bytes / GIB:.3g} GiB"
    return f"{amounts} in {each.count} x {each.kind} {each.shapes}"


def sampling_knobs(offload: bool) -> str:
    """Returns what to change where sampling does not fit."""
    first = "" if offload else "  --offload: one network at a time on the device\n"
    return f"What would help:\n{first}  a device with more memory\n"


def knobs(config: Config) -> str:
    """Returns what to change in a config that does not fit, the cheapest first."""
    train, model = config.train, config.model
    choices = [
        (train.zero < 3, "--train.zero 3: parameters shared out too"),
        (model.vae_chunk != 1, "--model.vae-chunk 1: one object in the VAE at a time"),
        (config.optim.first_moment == "float32", "--optim.first-moment bfloat16"),
        (not model.remat, "--model.remat: recompute layers in the backward pass"),
        (model.remat and model.remat_keeps != "nothing", "--model.remat-keeps nothing"),
        (True, f"--train.accumulate {2 * train.accumulate}: half as many objects at a time"),
        (
            not train.offload_optimizer,
            "--train.offload-optimizer: moments in the host's memory (not weighed for GPUs)",
        ),
        (train.fsdp != 0, "--train.fsdp 0: the state shared out over all devices"),
        (True, "more devices, or devices with more memory"),
    ]
    return "What would help, the cheapest first:\n" + "".join(
        f"  {text}\n" for holds, text in choices if holds
    )
