"""The train step: our U-Net against diffusers', and Algorithm 1 against its straightforward form.

    taskset -c 0 python benchmarks/train_step.py [--parts unet nano middle] [--write FILE]

Each part runs in a process of its own, on the processors that `taskset` leaves; with one, XLA and
torch use one thread each. Times are of the processor, not the wall, and programs take turns: other
work on the machine then hardly counts. Parts `unet` and `unet_channels_last` need `[parity]`.
"""

import argparse
import concurrent.futures
import datetime
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tqdm import tqdm

from o3d_jax.errors import InputError, exit_on_input_error

HERE = Path(__file__).parent
UNET, CHANNELS_LAST, NANO, MIDDLE = "unet", "unet_channels_last", "nano", "middle"
PARTS = (UNET, CHANNELS_LAST, NANO, MIDDLE)
TINY = "tiny"
"""Says nothing but that this program runs: not among the parts unless asked for."""


def measure(part: str, threads: int, repeats: int) -> str:
    """One part's section of the report; in a process of its own."""
    if part in (UNET, CHANNELS_LAST):
        import train_step_unet  # Needs torch.

        size = train_step_unet.Size(batch=1, frames=8, side=32)
        ratios = train_step_unet.measure(size, threads, repeats, part == CHANNELS_LAST)
        return unet_section(ratios, part == CHANNELS_LAST)
    import train_step_plain

    return step_section(part, train_step_plain.measure(part, repeats))


def unet_section(ratios: Sequence, channels_last: bool) -> str:
    """Of `train_step_unet.Ratio`s."""
    layout = "; torch's kernels in its channels-last layout" if channels_last else ""
    lines = [
        f"## Against diffusers' U-Net in PyTorch{layout}",
        "",
        "| | ours, processor s | torch, processor s | ratio, median | least | greatest |",
        "|---|---|---|---|---|---|",
    ]
    for ratio in ratios:
        each = [a / b for a, b in zip(ratio.ours, ratio.torch, strict=True)]
        lines.append(
            f"| {ratio.name} | {median(ratio.ours):.3f} | {median(ratio.torch):.3f} "
            f"| **{median(each):.2f}** | {min(each):.2f} | {max(each):.2f} |"
        )
    return "\n".join(lines)


def step_section(part: str, measured: Sequence) -> str:
    """Of `train_step_plain.Measured`; the first is the straightforward step."""
    plain = measured[0]
    lines = [
        f"## Algorithm 1's step, {part}",
        "",
        "| step | processor s | time ratio (least to greatest) | memory MB (arguments + outputs + "
        "temporaries) | memory ratio | compile s |",
        "|---|---|---|---|---|---|",
    ]
    for m in measured:
        each = [a / b for a, b in zip(m.seconds, plain.seconds, strict=True)]
        lines.append(
            f"| {m.name} | {median(m.seconds):.2f} | **{median(each):.2f}** ({min(each):.2f} to "
            f"{max(each):.2f}) | {m.memory_mb:.0f} ({m.arguments_mb:.0f} + {m.outputs_mb:.0f} + "
            f"{m.temporaries_mb:.0f}) | **{m.memory_mb / plain.memory_mb:.2f}** | "
            f"{m.compile_s:.0f} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, TINY], default=PARTS)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each part")
    parser.add_argument("--write", type=Path, help="a file for the tables")
    return parser.parse_args()


def versions() -> str:
    """Of what matters, and the date."""
    names = [name for name in ("jax", "jaxlib", "torch", "diffusers") if _installed(name)]
    parts = [f"{name} {version(name)}" for name in names]
    return ", ".join([*parts, datetime.date.today().isoformat()])


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@exit_on_input_error()
def main() -> None:
    """Measures, and writes or prints the tables."""
    arguments = parse()
    missing = [name for name in ("torch", "diffusers") if not _installed(name)]
    if missing and {UNET, CHANNELS_LAST} & set(arguments.parts):
        raise InputError(f"--parts unet: {missing[0]} is missing; pip install '.[parity]'")
    threads = len(os.sched_getaffinity(0))
    if threads == 1:  # Read when a process starts.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false {flags}"
    sections = []
    for part in tqdm(arguments.parts, desc="parts"):
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            sections.append(pool.submit(measure, part, threads, arguments.repeats).result())
        tqdm.write(sections[-1])
    command = " ".join(["python benchmarks/train_step.py", *sys.argv[1:]])
    header = f"By `{command}`, {threads} thread(s): {versions()}."
    text = "\n\n".join([header, *sections]) + "\n"
    if arguments.write is not None:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
