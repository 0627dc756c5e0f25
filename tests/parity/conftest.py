"""Needs the extra [parity]; without it nothing here is collected."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "transformers")):
    collect_ignore_glob = ["test_*.py"]
