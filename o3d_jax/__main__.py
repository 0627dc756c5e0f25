"""The command `o3d`: finds a command's module by its words, and runs its `main`.

Nothing else is imported: JAX takes longer to import than `o3d --help` may take. So tyro draws the
lists of commands and reads each one's options, but which command it is, is found out here: tyro
would have to know the options of all of them.
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.places import SCRIPTS

COMMANDS = {
    "sample": "Images to 3D objects of Gaussians (Algorithm 2).",
    "train": "A config to a model (Algorithm 1), or to one of its networks.",
    "view": "A result in the browser, or in a page to share.",
    "demo": "Images to 3D objects in the browser.",
    "mesh": "What was sampled to a closed triangle mesh, mesh.glb.",
    "evaluate": "Models on rendered objects: PSNR, SSIM and LPIPS.",
    "plan": "Whether a config fits a machine that you don't have.",
    "data render": "3D models to orbits of pictures.",
    "data inspect": "What is wrong with rendered orbits, and how they look.",
    "data build": "Rendered orbits to packed ones, for training.",
    "weights fetch": "Published weights to a checkpoint.",
    "weights convert": "Torch weights to a checkpoint.",
    "weights export": "A checkpoint to files under their torch names.",
    "weights compare": "Where our network and torch's first differ.",
    "weights dump-script": "The script that dumps a torch network, for `weights compare`.",
    "weights bundle": "A checkpoint in half its size, to ship.",
}
"""What each command makes of what."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name, by default those of the process.

    A mistake in them ends the process with one line and status 2.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with exit_on_input_error():
        for count in (1, 2):
            name = " ".join(words[:count])
            if name in COMMANDS:
                return _module(name).main(words[count:], f"o3d {name}")
        _answer_without_command(words)


def _module(name: str) -> ModuleType:
    """The module of a command: a file in commands/, or one of the two scripts at the top."""
    if name not in ("sample", "train"):
        path = name.replace(" ", ".").replace("-", "_")
        return importlib.import_module(f"o3d_jax.commands.{path}")
    spec = importlib.util.spec_from_file_location(f"o3d_jax.scripts.{name}", SCRIPTS / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no {name}.py in {SCRIPTS}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look for the names in their annotations.
    spec.loader.exec_module(module)
    return module


def _answer_without_command(words: list[str]) -> None:
    """Lists the commands if asked to; else refuses, naming the nearest.

    Raises:
        InputError: there is no such command, or none was given.
    """
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    group = words.pop(0) if words and words[0] in groups else None
    program = f"o3d {group}" if group else "o3d"
    summaries = {
        name.removeprefix(f"{group} "): COMMANDS[name]
        for name in COMMANDS
        if group is None or name.startswith(f"{group} ")
    }
    if not words:
        raise InputError(f"no command after `{program}`; give one of: {', '.join(summaries)}")
    if words[0] in ("-h", "--help"):
        return _list_commands(program, summaries)
    near = difflib.get_close_matches(words[0], list(summaries), 1, 0.0)[0]
    raise InputError(
        f"no command `{program} {words[0]}`; the nearest is `{program} {near}`, and "
        f"`{program} --help` lists all"
    )


def _list_commands(program: str, summaries: dict[str, str]) -> None:
    """Prints the commands as tyro lays out those that it parses itself."""
    import tyro  # Not for every command: train and sample import it after JAX anyway.

    app = tyro.extras.SubcommandApp()
    for name, summary in summaries.items():

        def command() -> None: ...

        command.__doc__ = summary
        app.command(name=name)(command)
    about = f"One image in, a 3D object out. `{program} COMMAND --help` says more of a command."
    app.cli(prog=program, description=about, args=["--help"])


if __name__ == "__main__":
    main()
