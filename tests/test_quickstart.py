"""The quickstart in short form: all real parts together rediscover known compounds from the elements alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

pytestmark = pytest.mark.slow

PUBLISHED = {"Mg2Si": -0.155, "Mg2Ge": -0.254}
"""Formation energies in eV/atom, Materials Project (PBE). Mg2Si: mp-1367. Mg2Ge: twice that of Mg4SiGe (mp-1222108,
-0.2044, on the hull between the two) less that of Mg2Si, the least it can be if Mg4SiGe is stable."""


def antifluorite(anion: str) -> Structure:
    sites = [[0.25, 0.25, 0.25], [0, 0, 0]]
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(6.4), ["Mg", anion], sites).get_primitive_structure()


def discovery(*arguments: str) -> str:
    command = [sys.executable, "-m", "discovery", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("gpaw") is None, reason="GPAW is not installed; `make setup` installs it")
def test_quickstart_rediscovers_known_compounds(tmp_path: Path):
    run_dir = tmp_path / "quickstart"
    discovery("launch", "quickstart", "campaign.rounds=2", f"run_dir={run_dir}")

    status = json.loads(discovery("status", str(run_dir), "--json"))
    assert status["state"] == "finished"
    funnel = status["funnel"]
    ends = sum(funnel[end] for end in ("rejected", "failed", "passed_over", "judged", "in_flight"))
    assert funnel["sampled"] == ends > 0
    assert status["budget"]["spent"]["reference_calls"] == funnel["computed"] <= 8
    assert any(checkpoint["parent"] for checkpoint in status["checkpoints"]), "nothing was learned"
    assert {phase["energy_scale"] for phase in status["stable"]} == {status["energy_scales"]["reference"]}

    discovery("export", str(run_dir), "--format", "cif", "--out", str(tmp_path / "found"))
    found = [Structure.from_file(path) for path in sorted((tmp_path / "found").glob("*.cif"))]
    rediscovered = {
        phase["formula"]: phase["formation_energy_per_atom"]
        for phase in status["stable"]
        for anion in ("Si", "Ge")
        if phase["formula"] == f"Mg2{anion}"
        and any(StructureMatcher().fit(structure, antifluorite(anion)) for structure in found)
    }
    assert set(rediscovered) == {"Mg2Si", "Mg2Ge"}
    for formula, energy in rediscovered.items():
        assert energy == pytest.approx(PUBLISHED[formula], abs=0.1), formula
