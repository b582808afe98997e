"""The check of a campaign's oracles before it begins: done once per oracle, and remembered.

Reports are kept in the user's cache folder by energy scale, options of the oracle and extent of the check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from discovery.check import CheckReport, check, computes
from discovery.config import CampaignConfig, OracleChoice
from discovery.errors import MissingDependencyError, OracleCheckError
from discovery.files import cache_folder, write_atomically
from discovery.processes import process_pool
from discovery.types import EnergyScale

Report = Mapping[str, Any]
"""A check's report as JSON."""


def check_oracles(config: CampaignConfig, progress: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Check the oracles of a campaign that is about to begin, and yield warnings.

    What `discovery check` has found of an oracle holds. Otherwise it is checked here, in a process of its own: like
    ``discovery check --quick``, with the known solids of the chemical space first; an oracle that needs more than
    a second for a static calculation is compared with the first known solid alone. Oracles that look results up cannot
    be checked and are trusted.

    Raises
    ------
    OracleCheckError
        If an oracle fails and the configuration requires that it does not.
    """
    if config.oracle.check == "skip":
        return
    roles = {"screening": config.oracle.screening, "reference": config.oracle.reference}
    with process_pool(1) as pool:
        for role, choice in roles.items():
            if not computes(choice):
                continue
            progress(f"checking the {role} oracle {choice.name}")
            try:
                problem = _problem(pool.submit(checked, choice, config.campaign.elements).result())
            except BrokenProcessPool:
                problem = "the process in which the oracles are checked died"
            except MissingDependencyError as error:
                if config.executor.address is None:
                    raise
                yield f"the {role} oracle {choice.name} cannot be checked on this machine: {error}"
                continue
            if problem is None:
                continue
            message = (
                f"the {role} oracle {choice.name} fails its check: {problem}. See all of it with `discovery check "
                f"{choice.name}` and the same options"
            )
            if config.oracle.check == "require":
                raise OracleCheckError(f"{message}; to launch all the same, set oracle.check=warn")
            yield message


def checked(choice: OracleChoice, elements: tuple[str, ...]) -> Report:
    """Return what is remembered of an oracle, or check it now and remember it."""
    found = remembered(choice.model_dump(mode="json"), choice.create().energy_scale, elements)
    if found is not None and (found["passed"] or found["extent"] != "launch"):
        return found
    report = check(choice, extent="launch", elements=elements)
    remember(report, elements)
    return report.to_dict()


def remembered(oracle: Mapping[str, Any], scale: EnergyScale, elements: Sequence[str]) -> Report | None:
    """Return what is remembered of the most thorough check of an oracle, or None if it was not checked."""
    for extent in ("full", "quick", _extent("launch", tuple(elements))):
        try:
            found: Report = json.loads(_path(oracle, scale, extent).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found
    return None


def remember(report: CheckReport, elements: tuple[str, ...] = ()) -> None:
    """Keep a report for the campaigns to come; a folder that cannot be written is no error."""
    path = _path(report.oracle, report.energy_scale, _extent(report.extent, elements))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(report.to_dict(), ensure_ascii=False))
    except OSError:
        return


def _problem(report: Report) -> str | None:
    """Return what a report says is wrong with an oracle, or None."""
    if report["passed"]:
        return None
    failed = [item for item in report["checks"] if not item["passed"]]
    if not failed:
        return "it has no parameters for any known solid"
    shown = "; ".join(_explain(item) for item in failed[:3])
    return shown + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")


def _extent(extent: str, elements: tuple[str, ...]) -> str:
    return "-".join((extent, *sorted(elements)))


def _path(oracle: Mapping[str, Any], scale: EnergyScale, extent: str) -> Path:
    known = resources.files("discovery").joinpath("known_solids.json").read_text("utf-8")
    key = json.dumps([oracle, asdict(scale), hashlib.sha256(known.encode()).hexdigest()], sort_keys=True)
    return cache_folder() / "checks" / f"{hashlib.sha256(key.encode()).hexdigest()}-{extent}.json"


def _explain(item: Mapping[str, Any]) -> str:
    if item["deviation"] is None:
        return f"{item['quantity']} of {item['subject']}: {item['problem']}"
    return (
        f"{item['quantity']} of {item['subject']} is off by {item['deviation']:+.2g} {item['unit']} "
        f"(at most {item['tolerance']:.2g})"
    )
