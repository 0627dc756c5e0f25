"""Needs the extra [parity]; without it nothing here is collected."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))  # synthetic.py, quick.py

if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "transformers")):
    collect_ignore_glob = ["test_*.py"]
