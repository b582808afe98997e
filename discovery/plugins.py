"""Plug-ins: oracles, generators and agents, found by entry point.

A package adds one by declaring an entry point of the group ``discovery.oracles``, ``discovery.generators`` or
``discovery.agents``; the engine never names a concrete plug-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from discovery.errors import ConfigError, MissingDependencyError

Group = Literal["oracles", "generators", "agents"]


def names(group: Group) -> list[str]:
    """Return the names of all installed plug-ins of `group`, sorted."""
    return sorted(_entry_points(group))


def load(group: Group, name: str) -> type[Any]:
    """Import the plug-in class called `name`.

    Raises
    ------
    ConfigError
        If no such plug-in is installed; the message names the nearest one and all valid ones.
    MissingDependencyError
        If its module, or a package that its module needs, cannot be imported.
    """
    found = _entry_points(group)
    if name not in found:
        raise ConfigError(f"there is no {group[:-1]} called {name!r}; {suggest(name, sorted(found))}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(_explain(group, found[name], error)) from error


def suggest(name: str, valid: Sequence[str]) -> str:
    """Return the end of an error message about an unknown `name`: the nearest valid one, and all of them."""
    if not valid:
        return "none is available"
    near = nearest(name, valid)
    listed = "valid: " + ", ".join(valid)
    return f"did you mean {near!r}? ({listed})" if near else listed


def nearest(name: str, valid: Sequence[str]) -> str | None:
    """Return the valid name that looks most like `name`, or None if none does."""
    return next(iter(get_close_matches(name, valid, n=1, cutoff=0.5)), None)


def _entry_points(group: Group) -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=f"discovery.{group}")}


def _explain(group: Group, entry_point: EntryPoint, error: ImportError | AttributeError) -> str:
    package = entry_point.dist.name if entry_point.dist is not None else entry_point.module
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and not f"{entry_point.module}.".startswith(f"{missing}."):
        step = f"install the package that provides {missing!r} (pip install {missing.split('.')[0]})"
    else:
        step = f"reinstall {package}, or correct its entry point discovery.{group}"
    return f"the {group[:-1]} {entry_point.name!r} ({entry_point.value}) cannot be imported: {error}; {step}"
