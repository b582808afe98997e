"""MP2020 against pymatgen's own, and against published figures."""

import json
from dataclasses import replace

import pytest
from ase.build import bulk
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry

from discovery.corrections import corrected_scale, corrections_of_crystal
from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.evaluation import stability
from discovery.hull_command import place
from discovery.sets import read_set
from discovery.types import EnergyScale, Evaluation

PBE = EnergyScale("model", "1", "PBE")
ROCKSALT = Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.64))
CHLORIDE = -0.614
"""eV per chloride ion; Wang et al., Sci. Rep. 11, 15496 (2021)."""


def entry(formula, energy, id_, corrected=False, **parameters):
    made = ComputedEntry(formula, energy, entry_id=id_, parameters={"run_type": "GGA"} | parameters)
    if corrected:
        MaterialsProject2020Compatibility(check_potcar=False).process_entry(made)
    return made.as_dict()


def written(path, *entries):
    path.write_text(json.dumps(entries))
    return path


SODIUM_CHLORIDE = (("Na", -1.3, "na"), ("Cl", -1.8, "cl"), ("Na4Cl4", -27.2, "nacl"))


@pytest.mark.parametrize("corrected", [False, True])
def test_sodium_chloride_is_corrected_once(tmp_path, corrected):
    path = written(tmp_path / "e.json", *(entry(*one, corrected=corrected) for one in SODIUM_CHLORIDE))
    placed = place(path, path, corrections=True)
    found = placed.placements[2].decomposition.decomposition_energy
    assert found == pytest.approx((-27.2 + 4 * CHLORIDE) / 8 - (-1.3 - 1.8) / 2, abs=1e-9)
    assert placed.to_dict()["corrections"]["reference"] == {
        "nacl": {"MP2020 anion correction (Cl)": pytest.approx(CHLORIDE / 2)}
    }


def test_without_the_option_energies_are_as_the_entries_say(tmp_path):
    plain = written(tmp_path / "a.json", *(entry(*one) for one in SODIUM_CHLORIDE))
    corrected = written(tmp_path / "b.json", *(entry(*one, corrected=True) for one in SODIUM_CHLORIDE))
    energies = [read_set(path).members[2].energies for path in (plain, corrected)]
    assert [one.total for one in energies] == pytest.approx([-3.4, -3.4 + CHLORIDE / 2])
    assert energies[0].corrections == {}


def test_corrected_and_uncorrected_energies_never_meet(tmp_path):
    plain = written(tmp_path / "a.json", *(entry(*one) for one in SODIUM_CHLORIDE))
    corrected = written(tmp_path / "b.json", *(entry(*one, corrected=True) for one in SODIUM_CHLORIDE))
    with pytest.raises(EnergyScaleError, match="--corrections mp2020"):
        place(plain, corrected)
    mixed = [entry(*SODIUM_CHLORIDE[2], corrected=True), entry("KCl", -7.0, "kcl")]
    with pytest.raises(EnergyScaleError, match="kcl"):
        place(written(tmp_path / "c.json", *mixed), corrected)


def test_alloys_and_elements_meet_corrected_compounds(tmp_path):
    path = written(
        tmp_path / "e.json",
        *(entry(*one, corrected=True) for one in SODIUM_CHLORIDE),
        entry("CuAu", -7.0, "alloy"),
        entry("Cu", -3.5, "cu"),
        entry("Au", -3.2, "au"),
    )
    assert all(one.decomposition or "only entry" in one.problem for one in place(path, path).placements)


@pytest.mark.parametrize(("formula", "run_type", "hubbards"), [
    ("Fe2O3", "GGA+U", {"Fe": 5.3, "O": 0}),
    ("Na2O2", "GGA", {}),
    ("ZnS", "GGA", {}),
    ("Mg2Si", "GGA", {}),
    ("MgCu2", "GGA", {}),
    ("NaClO4", "GGA", {}),
])  # fmt: skip
def test_every_kind_is_that_of_pymatgen(tmp_path, formula, run_type, hubbards):
    made = ComputedEntry(formula, -10.0, parameters={"run_type": run_type, "hubbards": hubbards})
    path = written(tmp_path / "e.json", made.as_dict())
    expected = MaterialsProject2020Compatibility(check_potcar=False).process_entry(made)
    assert read_set(path, corrections=True).members[0].energies.total == pytest.approx(expected.energy_per_atom)


def test_what_the_scheme_does_not_hold_for_is_named(tmp_path):
    path = written(tmp_path / "e.json", entry("Fe2O3", -30.0, "x", hubbards={"Fe": 4.0}), entry("Fe", -8.0, "fe"))
    member = read_set(path, corrections=True).members[0]
    assert member.energies.total is None
    assert "Invalid U value of 4.0" in member.energies.problem
    csv = tmp_path / "e.csv"
    csv.write_text("id,formula,energy_per_atom\na,NaCl,-3.4\n")
    with pytest.raises(EnergyScaleError, match="only JSON entries"):
        read_set(csv, corrections=True)


def test_an_oracles_energy_is_corrected_like_a_calculation():
    assert corrections_of_crystal(ROCKSALT, PBE) == {"MP2020 anion correction (Cl)": pytest.approx(CHLORIDE)}
    oxide = Crystal.from_atoms(bulk("FeO", "rocksalt", a=4.3))
    found = corrections_of_crystal(oxide, replace(PBE, functional="PBE+U"))
    assert set(found) == {"MP2020 anion correction (oxide)", "MP2020 GGA/GGA+U mixing correction (Fe)"}
    with pytest.raises(InvalidInputError, match="Invalid U"):  # the Materials Project has a U there
        corrections_of_crystal(oxide, PBE)


def test_scales_that_cannot_be_corrected():
    assert corrected_scale(PBE).corrections == "MP2020"
    contained = replace(PBE, corrections="MP2020")
    assert corrected_scale(contained) is contained
    with pytest.raises(EnergyScaleError, match="leave MP2020 out"):
        corrected_scale(replace(PBE, corrections="other"))
    with pytest.raises(EnergyScaleError, match="of EMT"):
        corrected_scale(replace(PBE, functional="EMT"))


class Given:
    """An oracle that answers -3.4 eV/atom and leaves the crystal as it is."""

    def __init__(self, scale):
        self.energy_scale = scale

    def evaluate(self, crystals, *, folder=None):
        return [Evaluation(self.energy_scale, c, -3.4 * len(c), converged=True) for c in crystals]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("scale", [PBE, replace(PBE, corrections="MP2020")], ids=["uncorrected", "corrected"])
def test_stability_corrects_candidates_and_hull_once(tmp_path, scale, corrected):
    hull = written(tmp_path / "e.json", *(entry(*one, corrected=corrected) for one in SODIUM_CHLORIDE))
    crystal = tmp_path / "x.json"
    crystal.write_text(json.dumps([ROCKSALT.to_dict()]))
    result = stability.evaluate(
        read_set(crystal), read_set(hull, corrections=True), read_set(crystal), Given(scale), corrections=True
    )
    # the candidate has the energy of the entry; an oracle that contains the correction gives it once too little
    expected = 0.0 if scale is PBE else -CHLORIDE / 2
    assert result.metric("mean_e_above_hull").value == pytest.approx(expected, abs=1e-9)
    assert bool(result.corrections["generated"]) == (scale is PBE)
    assert result.settings["energy_scale"]["corrections"] == "MP2020"
    uncorrected_hull = read_set(hull)
    if corrected == (scale is PBE):
        with pytest.raises(EnergyScaleError, match="would meet"):
            stability.evaluate(read_set(crystal), uncorrected_hull, read_set(crystal), Given(scale))
