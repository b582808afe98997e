"""Small real campaigns for tests: EMT oracles and random search in Cu-Au."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from discovery.campaign import Campaign
from discovery.config import CampaignConfig
from discovery.runfolder import RunFolder
from oracles.emt import EMTOracle


def small_config(run_dir: Path, *, executor: str = "in_process", seed: int = 7, **search: Any) -> CampaignConfig:
    """Return the configuration of a campaign of some seconds; `search` replaces settings of its search."""
    settings = {
        "chemical_space": "Cu-Au",
        "rounds": 2,
        "targets_per_round": 2,
        "samples_per_target": 3,
        "max_atoms": 4,
        "reference_calls_per_round": 2,
        "metastable_threshold": 0.2,
        "budget": {"reference_calls": 10},
    }
    return CampaignConfig.model_validate(
        {
            "name": "small",
            "seed": seed,
            "run_dir": run_dir,
            "campaign": settings | search,
            "oracle": {
                "screening": {"name": "emt", "fmax": 0.1, "smax": 0.005},
                "reference": {"name": "emt", "fmax": 0.02},
            },
            "generator": {"name": "random_search"},
            "agent": {"name": "greedy"},
            "references": {"source": "elements"},
            "executor": {"name": executor, "screening_workers": 2},
        }
    )


def tiny_config(run_dir: Path, **changes: Any) -> CampaignConfig:
    """Return the configuration of a campaign of a fraction of a second: no relaxation, random orders on a lattice.

    Its generator is one of ``tests.discovery.plugins``. `changes` replace top-level settings, or, given as a mapping,
    single settings of a section.
    """
    data = small_config(run_dir).model_dump(mode="json")
    oracle = {"name": "emt", "relax": False}
    data |= {"name": "tiny", "oracle": {"screening": oracle, "reference": oracle}, "generator": {"name": "lattices"}}
    data["agent"] = {"name": "greedy", "max_decomposition_energy": 1.0}
    for section, value in changes.items():
        data[section] = data[section] | value if isinstance(value, dict) else value
    return CampaignConfig.model_validate(data)


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each evaluation by EMT take a fifth of a second longer, so that a campaign can be met on its way."""
    evaluate = EMTOracle.evaluate

    def slow(self: EMTOracle, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(EMTOracle, "evaluate", slow)


def run(config: CampaignConfig) -> Path:
    """Launch a campaign, run it to its end and return its run folder."""
    with Campaign.launch(config) as campaign:
        campaign.run()
    return config.run_dir


def results(run_dir: Path) -> dict[str, int]:
    """Return result file → time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in run_dir.glob("calculations/*/*/result.json")}


def outcome(run_dir: Path) -> dict[str, Any]:
    """Return everything a campaign found and decided, without times."""
    store = RunFolder(run_dir).read_store()
    try:
        return {
            "candidates": [
                (
                    candidate.id,
                    candidate.state,
                    candidate.crystal,
                    candidate.screening_decomposition_energy,
                    candidate.screening.energy if candidate.screening else None,
                    candidate.reference.energy if candidate.reference else None,
                    candidate.verdict,
                )
                for candidate in store.candidates()
            ],
            "transitions": sorted(store.transitions(), key=lambda arrow: (arrow[0], arrow[2])),
            "targets": store.targets(),
            "hulls": {role: (store.hull(role), store.hull_versions(role)) for role in ("screening", "reference")},
            "reference_calls": store.budget({}).spent["reference_calls"],
            "reserved": store.budget({}).reserved,
            "evaluations": {role: count for role, (count, _, _) in store.costs().items()},
            "funnel": store.funnel(),
        }
    finally:
        store.close()
