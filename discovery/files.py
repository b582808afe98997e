"""Files that outlive a run: whole or not at all, in a place of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def cache_folder() -> Path:
    """Return the folder of what campaigns share: ``$DISCOVERY_CACHE``, or the user's cache folder (XDG on Linux)."""
    given = os.environ.get("DISCOVERY_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("discovery-engine")
