"""Tables that move results of the protocols, kept here so that no library update changes a metric."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def table(name: str) -> Any:
    """Return the content of ``NAME.json``; each names its source."""
    return json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text())
