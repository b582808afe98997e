"""Command line, status, report and export of one real campaign."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ase.io import read
from monty.serialization import loadfn
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from discovery import cli
from discovery.hull import Hull
from discovery.store import Store

CAMPAIGN = """
campaign:
  chemical_space: Cu-Au
  rounds: 2
  targets_per_round: 3
  samples_per_target: 3
  max_atoms: 4
  reference_calls_per_round: 3
  budget: {reference_calls: 6}
references: {source: elements}
executor: {name: in_process}
"""
CHOICES = ("oracle/screening=emt", "oracle/reference=emt", "generator=random_search", "seed=7")


def call(*arguments: str) -> None:
    """Run the command in this process; it exits with the code it would give to the shell."""
    before, sys.argv = sys.argv, ["discovery", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    campaign = tmp_path_factory.mktemp("cli") / "cuau.yaml"
    campaign.write_text(CAMPAIGN)
    folder = campaign.with_name("run")
    call("launch", str(campaign), *CHOICES, f"run_dir={folder}", "--quiet")
    return folder


@pytest.fixture(scope="module")
def hull(run_dir: Path) -> Hull:
    return Store.read(run_dir / "campaign.sqlite").hull("reference")


def status_of(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    call("status", str(run_dir), "--json")
    status: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status


def test_status_keeps_its_contract(run_dir: Path, capsys: pytest.CaptureFixture[str], hull: Hull) -> None:
    status = status_of(run_dir, capsys)
    assert (status["state"], status["round"], status["seed"], status["name"]) == ("finished", 1, 7, "cuau")
    funnel = status["funnel"]
    ends = ("rejected", "failed", "passed_over", "judged", "in_flight")
    assert funnel["sampled"] == 18 == sum(funnel[end] for end in ends)
    assert status["budget"]["spent"]["reference_calls"] == funnel["judged"] <= 6
    assert status["energy_scales"]["reference"] == hull.energy_scale.id
    assert status["seconds"] > 0
    assert status["failures"] == {}
    assert status["checkpoints"] == []
    assert status["stable"]
    for phase in status["stable"]:
        assert set(phase) == {
            "id",
            "formula",
            "spacegroup",
            "e_above_hull",
            "decomposition_energy",
            "formation_energy_per_atom",
            "energy_scale",
            "hull_version",
        }
        assert phase["id"].startswith("r0")
        assert phase["e_above_hull"] <= 1e-3
        assert phase["formation_energy_per_atom"] < 0
        assert phase["hull_version"] == hull.version
        structure = next(p.crystal for p in hull.phases if p.id == phase["id"]).to_structure()
        assert SpacegroupAnalyzer(structure, symprec=0.1).get_space_group_symbol() == phase["spacegroup"]
    assert len({phase["formula"] for phase in status["stable"]} & {"Cu3Au", "CuAu", "CuAu3"}) >= 1


def test_status_for_people_shows_the_sum(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("status", str(run_dir))
    out = capsys.readouterr().out
    assert "18 sampled = " in out
    assert "stable (e_above_hull ≤ 0.001 eV/atom)" in out


def test_exported_entries_give_the_same_hull(run_dir: Path, tmp_path: Path, hull: Hull) -> None:
    call("export", str(run_dir), "--format", "entries", "--all", "--out", str(tmp_path))
    entries = loadfn(tmp_path / "entries.json")
    assert {entry.entry_id for entry in entries} == {phase.id for phase in hull.phases}
    diagram = PhaseDiagram(entries)
    assert {entry.entry_id for entry in diagram.stable_entries} == {phase.id for phase in hull.stable_phases}
    for entry in entries:
        assert diagram.get_e_above_hull(entry) == pytest.approx(entry.data["e_above_hull"], abs=1e-8)


def test_exported_cifs_are_the_stable_crystals(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hull: Hull
) -> None:
    call("export", str(run_dir), "--format", "cif", "--out", str(tmp_path))
    stable = status_of(run_dir, capsys)["stable"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{phase['formula']}_{phase['id']}.cif" for phase in stable}
    for path in tmp_path.iterdir():
        structure = Structure.from_file(path)
        crystal = next(phase.crystal for phase in hull.phases if phase.id in path.name)
        assert structure.composition == crystal.composition
        assert structure.volume == pytest.approx(crystal.volume, rel=1e-6)
        assert min(structure.distance_matrix.flatten()) >= 0


def test_exported_extxyz_has_energies_and_forces(run_dir: Path, tmp_path: Path, hull: Hull) -> None:
    call("export", str(run_dir), "--format", "extxyz", "--all", "--out", str(tmp_path))
    frames = read(tmp_path / "phases.extxyz", index=":")
    energies = {phase.id: phase.energy for phase in hull.phases}
    assert {frame.info["id"] for frame in frames} == set(energies)
    for frame in frames:
        assert frame.get_potential_energy() == pytest.approx(energies[frame.info["id"]], abs=1e-6)
        assert abs(frame.get_forces()).max() < 0.06


def test_the_report_says_what_counts(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("report", str(run_dir))
    report = (run_dir / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    for phase in status_of(run_dir, capsys)["stable"]:
        row = next(line for line in report.splitlines() if phase["id"] in line)
        assert f"| {phase['formula']} | {phase['spacegroup']} | stable (≤ 0.001) |" in row
    assert "18 sampled = " in report
    assert "mean absolute error" in report


def test_every_event_is_a_line_of_json(run_dir: Path) -> None:
    events = [json.loads(line) for line in (run_dir / "campaign.log").read_text().splitlines()]
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "finished"
    assert (
        sum(event["event"] == "judged" for event in events)
        == Store.read(run_dir / "campaign.sqlite").funnel()["judged"]
    )


def test_resuming_a_finished_campaign_shows_its_report(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("resume", str(run_dir))
    assert "# cuau" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("launch", "{run_dir}/../cuau.yaml", *CHOICES, "run_dir={run_dir}"), 1, "discovery resume"),
        (("launch", "quickstart", "campaign.rounds=0"), 2, "campaign.rounds"),
        (("launch", "quickstat"), 2, "quickstart"),
        (("status", "{run_dir}/nowhere"), 1, "not a run folder"),
        (("resume", "{run_dir}/nowhere"), 1, "not a run folder"),
        (("export", "{run_dir}/nowhere"), 1, "not a run folder"),
    ],
)
def test_errors_name_the_cause_without_a_traceback(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(*(argument.format(run_dir=run_dir) for argument in arguments))
    error = capsys.readouterr().err
    assert stop.value.code == code
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("discovery.cli", {"numpy", "torch", "pymatgen", "ray", "ase"}),
        ("discovery.campaign", {"torch", "ray", "pyxtal", "pymatgen.analysis.prototypes"}),
    ],
)
def test_programs_start_fast_because_they_import_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_campaign_that_cannot_begin_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = tmp_path / "cuau.yaml"
    campaign.write_text(CAMPAIGN)
    folder = tmp_path / "run"
    missing = ("references.source=csv", f"references.path={tmp_path / 'missing.csv'}")
    with pytest.raises(SystemExit):
        call("launch", str(campaign), *CHOICES, f"run_dir={folder}", *missing)
    assert "missing.csv does not exist" in capsys.readouterr().err
    assert not folder.exists()
