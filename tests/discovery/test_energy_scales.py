"""Energies of two scales meet nowhere: not in a hull, a set, a store, an evaluation or a report."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import bulk
from pymatgen.core import Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from typer.testing import CliRunner

from discovery.cli import app
from discovery.config import compose_oracle
from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, RunError
from discovery.evaluation_cache import EvaluationCache
from discovery.hull import Hull, Phase
from discovery.hull_command import place
from discovery.report import make_report
from discovery.runfolder import RunFolder
from discovery.store import Store
from discovery.store.queries import Queries
from discovery.types import EnergyScale, Evaluation
from oracles.recorded import RecordedOracle
from tests.discovery import campaigns

PBE = EnergyScale("vasp", "6.4", "PBE+U", "PAW PBE", corrections="MP2020")
UNCORRECTED = replace(PBE, corrections="")
SALT = Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.69))


def entry(scale: EnergyScale, id_: str, structure: Structure, energy: float) -> ComputedStructureEntry:
    return ComputedStructureEntry(structure, energy, entry_id=id_, parameters={"energy_scale": vars_of(scale)})


def vars_of(scale: EnergyScale) -> dict[str, str]:
    names = ("code", "version", "functional", "potentials", "settings", "corrections")
    return {name: getattr(scale, name) for name in names}


@pytest.mark.parametrize("name", ["code", "version", "functional", "potentials", "settings", "corrections"])
def test_each_part_of_a_scale_counts(name: str) -> None:
    other = replace(PBE, **{name: "another"})
    assert other.id != PBE.id
    with pytest.raises(EnergyScaleError, match=re.escape(other.id)):
        Hull(PBE).add([Phase("a", {"Na": 1.0}, -1.3, other)])


def test_hulls_refuse_phases_of_another_scale() -> None:
    with pytest.raises(EnergyScaleError) as error:
        Hull(PBE, (Phase("a", {"Na": 1.0}, -1.3, PBE), Phase("b", {"Cl": 1.0}, -1.8, UNCORRECTED)))
    assert PBE.id in str(error.value)
    assert UNCORRECTED.id in str(error.value)


def test_sets_of_two_scales_are_refused(tmp_path: Path) -> None:
    files = {}
    for scale in (PBE, UNCORRECTED):
        files[scale] = tmp_path / f"{scale.id}.json"
        entries = [entry(scale, element, Crystal.from_atoms(bulk(element)).to_structure(), -1.0) for element in ("Na",)]
        entries.append(entry(scale, "salt", SALT.to_structure(), -6.8))
        files[scale].write_text(json.dumps([each.as_dict() for each in entries]))
    with pytest.raises(EnergyScaleError):
        place(files[PBE], files[UNCORRECTED])
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps([entry(s, s.id, SALT.to_structure(), -6.8).as_dict() for s in (PBE, UNCORRECTED)]))
    with pytest.raises(EnergyScaleError):
        place(mixed, files[PBE])
    with pytest.raises(EnergyScaleError):
        RecordedOracle(RecordedOracle.Config(path=mixed))


@pytest.mark.parametrize("protocol", ["stability", "pairs", "stability with an oracle"])
def test_evaluations_refuse_sets_of_two_scales(tmp_path: Path, protocol: str) -> None:
    """Each file is of one scale; with an oracle, it is the oracle's that does not fit the entries."""
    emt = compose_oracle("emt").create().energy_scale
    files = {}
    for scale in (PBE, UNCORRECTED, emt):
        files[scale] = tmp_path / f"{scale.id}.json"
        known = [entry(scale, symbol, Crystal.from_atoms(bulk(symbol)).to_structure(), -1.0) for symbol in ("Cu", "Au")]
        files[scale].write_text(json.dumps([each.as_dict() for each in known]))
    generated, hull = str(files[PBE]), str(files[UNCORRECTED])
    arguments = {
        "stability": ["stability", generated, "--hull", hull],
        "pairs": ["pairs", generated, hull],
        "stability with an oracle": ["stability", generated, "--hull", hull, "--oracle", "emt"],
    }[protocol]
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert isinstance(result.exception, EnergyScaleError)
    same = [str(files[emt] if "oracle" in protocol else files[PBE]) if word == hull else word for word in arguments]
    result = CliRunner().invoke(app, ["evaluate", *same])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return campaigns.run(campaigns.tiny_config(tmp_path_factory.mktemp("run") / "run"))


@pytest.mark.parametrize("role", ["screening", "reference"])
def test_reports_refuse_a_phase_of_another_scale(tmp_path: Path, finished: Path, role: str) -> None:
    """A phase that something else than the campaign has put into its database."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert "Hull before and after" in make_report(run)
    with closing(sqlite3.connect(run / "campaign.sqlite")) as database, database:
        database.execute(
            "update phases set energy_scale_id = ? where role = ? and position = 1", (UNCORRECTED.id, role)
        )
    with pytest.raises(EnergyScaleError, match=re.escape(UNCORRECTED.id)):
        make_report(run)
    store = RunFolder(run).read_store()
    try:
        with pytest.raises(EnergyScaleError, match=re.escape(UNCORRECTED.id)):
            Queries(store).phases(role)
    finally:
        store.close()


def test_a_store_keeps_the_scale_it_began_with(tmp_path: Path) -> None:
    store = Store.create(f"sqlite:///{tmp_path / 'campaign.sqlite'}", name="a", seed=0, config={}, config_hash="")
    try:
        store.set_energy_scale("reference", PBE)
        store.set_energy_scale("reference", PBE)
        with pytest.raises(RunError, match=re.escape(UNCORRECTED.id)):
            store.set_energy_scale("reference", UNCORRECTED)
    finally:
        store.close()


def test_cached_evaluations_stay_on_their_scale(tmp_path: Path) -> None:
    cache = EvaluationCache(compose_oracle("emt"), PBE, tmp_path)
    cache.put(SALT, Evaluation(PBE, crystal=SALT, energy=-7.414, corrections={"Cl": -0.614}, converged=True))
    (file,) = tmp_path.glob("*/*.json")
    assert cache.get(SALT) is not None
    data = json.loads(file.read_text())
    data["evaluation"]["energy_scale"]["corrections"] = ""
    file.write_text(json.dumps(data))
    assert cache.get(SALT) is None
    assert replace(cache, energy_scale=UNCORRECTED).get(SALT) is None
