"""What every benchmark writes down beside its numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "scipy", "pymatgen", "torch", "ase")


def write_record(path: Path, results: Mapping[str, Any], *, seed: int, command: str) -> None:
    """Write `results` with machine, commit, seed, command and library versions as JSON, and print them."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "results": dict(results),
        "seed": seed,
        "command": command,
        "commit": commit,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
