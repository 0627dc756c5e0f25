"""Where configs/, train.py and sample.py are.

In a checkout they lie at the top, where one reads them; in a wheel inside of the package, since a
wheel has no business to install anything beside it. `pyproject.toml` says how they get there.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_IS_WHEEL = (_PACKAGE / "configs").is_dir()

CONFIGS = _PACKAGE / "configs" if _IS_WHEEL else _PACKAGE.parent / "configs"
"""The folder of the bundled configs, a Python file each."""

SCRIPTS = _PACKAGE / "scripts" if _IS_WHEEL else _PACKAGE.parent
"""The folder of train.py and sample.py."""
