"""Files that outlive a run: whole or not at all, in a place of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; at the end it takes the place of `path`, whole and flushed to the disk.

    If the block raises, or the machine stops, `path` holds what it held before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """Return the folder of what campaigns share: ``$DISCOVERY_CACHE``, or the user's cache folder (XDG on Linux)."""
    import platformdirs  # model code uses this module with the standard library alone

    given = os.environ.get("DISCOVERY_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("discovery-engine")
