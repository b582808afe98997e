import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.collections import dcdft
from ase.eos import EquationOfState as ASEEquationOfState
from ase.eos import birchmurnaghan
from ase.units import GPa
from typer.testing import CliRunner

from discovery.check import GPA, EquationOfState, check, known_solids
from discovery.cli import app
from discovery.config import compose_oracle
from discovery.errors import ConfigError
from oracles.emt import EMTOracle
from tests.oracles.conftest import gpaw_installed, matgl_model  # noqa: F401


def run(*arguments):
    result = CliRunner().invoke(app, ["check", *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def failed(report):
    return {(item["quantity"], item["subject"]) for item in report["checks"] if not item["passed"]}


def test_published_numbers_are_those_of_their_collection():
    for solid in known_solids().solids:
        if len(solid.species) > 1:
            continue
        published = dcdft.data[solid.species[0]]
        for name, prefix in (("PBE", "wien2k"), ("experiment", "exp")):
            if name in solid.references:
                assert solid.references[name].volume_per_atom == pytest.approx(published[f"{prefix}_volume"], rel=1e-5)
                assert solid.references[name].bulk_modulus == pytest.approx(published[f"{prefix}_B"], rel=1e-4)


def test_every_number_has_a_source():
    known = known_solids()
    for solid in known.solids:
        for reference in solid.references.values():
            assert any(reference.source.startswith(source) for source in known.sources)


def test_crystals_are_what_their_prototype_says():
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    groups = {"fcc": 225, "diamond": 227, "rocksalt": 225, "zincblende": 216, "cesiumchloride": 221, "L1_2": 221}
    for solid in known_solids().solids:
        crystal = solid.crystal(17.0)
        assert crystal.volume / len(crystal) == pytest.approx(17.0)
        assert SpacegroupAnalyzer(crystal.to_structure()).get_space_group_number() == groups[solid.prototype]


def test_equation_of_state_recovers_birch_murnaghan():
    volumes = np.linspace(9.0, 10.2, 7)
    energies = birchmurnaghan(volumes, -5.9, 149 * GPa, 4.1, 9.62)
    curve = EquationOfState.fit(volumes, energies)
    assert curve.volume == pytest.approx(9.62, rel=1e-6)
    assert curve.energy == pytest.approx(-5.9)
    assert curve.bulk_modulus / GPA == pytest.approx(149, rel=1e-4)
    assert curve.roughness < 1e-9
    volume, _, modulus = ASEEquationOfState(volumes, energies, "birchmurnaghan").fit()
    assert (curve.volume, curve.bulk_modulus) == pytest.approx((volume, modulus), rel=1e-4)
    energies[3] += 0.01
    assert EquationOfState.fit(volumes, energies).roughness > 0.003
    assert EquationOfState.fit(volumes, -volumes) is None


def test_emt_passes():
    code, report = run("emt")
    assert code == 0
    assert report["passed"]
    assert failed(report) == set()
    assert {"lattice constant", "relaxed lattice constant", "forces are derivatives"} <= {
        item["quantity"] for item in report["checks"]
    }
    assert {"MgO", "Al"} <= set(report["left_out"])
    assert report["seconds_per_atom"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("oracle", ["chgnet", "matgl"])
def test_force_fields_pass(oracle, request):
    settings = [f"model={request.getfixturevalue('matgl_model')}"] if oracle == "matgl" else []
    code, report = run(oracle, *settings, "--quick")
    assert failed(report) == set()
    assert code == 0
    assert "formation energy" in {item["quantity"] for item in report["checks"]}


@pytest.mark.slow
def test_weights_with_swapped_neighbour_roles_fail(tmp_path, matgl_model):  # noqa: F811
    """The file loads without complaint, and elements come out right: the halves differ in whose species is whose."""
    model = tmp_path / "swapped"
    shutil.copytree(matgl_model, model)
    state = torch.load(model / "state.pt", weights_only=True, map_location="cpu")
    (name,) = [key for key in state if key.endswith("tensor_embedding.emb2.weight")]
    state[name] = torch.cat(state[name].chunk(2, dim=1)[::-1], dim=1)
    torch.save(state, model / "state.pt")
    code, report = run("matgl", f"model={model}", "--quick")
    assert code == 1
    assert not report["passed"]
    found = failed(report)
    assert {("lattice constant", "MgO"), ("lattice constant", "NaCl"), ("formation energy", "AlNi")} <= found
    assert not any(subject in ("Si", "Al", "Ni") for _, subject in found)


class _Flawed(EMTOracle):
    """EMT with one flaw."""

    def __init__(self, config, flaw):
        super().__init__(config)
        self._flaw = flaw

    def evaluate(self, crystals, *, folder=None):
        return [self._flaw(evaluation) for evaluation in super().evaluate(crystals, folder=folder)]


def _spoil(flaw, monkeypatch):
    choice = compose_oracle("emt")
    monkeypatch.setattr(type(choice), "create", lambda self: _Flawed(self.options, flaw))
    return {
        (item.quantity, item.subject.split()[0]) for item in check(choice, extent="quick").checks if not item.passed
    }


def _changed(name, change):
    from dataclasses import replace

    def flaw(evaluation):
        return replace(evaluation, **{name: change(evaluation)}) if evaluation.ok else evaluation

    return flaw


FLAWS = {
    "forces of the wrong sign": (
        _changed("forces", lambda e: -e.forces),
        {"forces are derivatives"},
    ),
    "stress in GPa": (
        _changed("stress", lambda e: e.stress / GPa),
        {"stress is a derivative"},
    ),
    "energy that depends on the orientation": (
        _changed("energy", lambda e: e.energy + 0.05 * len(e.crystal) * e.crystal.lattice[0, 0]),
        {"energy under rotation"},
    ),
    "energy that is not extensive": (
        _changed("energy", lambda e: e.energy + 0.01 * len(e.crystal) ** 2),
        {"energy under doubling of the cell"},
    ),
    "noisy energy": (
        _changed("energy", lambda e: e.energy + 0.005 * len(e.crystal) * np.sin(40 * e.crystal.volume)),
        {"smooth energy–volume curve"},
    ),
}


@pytest.mark.parametrize("name", FLAWS)
def test_flaws_are_named(name, monkeypatch):
    flaw, expected = FLAWS[name]
    assert expected <= {what for what, _ in _spoil(flaw, monkeypatch)}


def test_settings_are_checked_like_those_of_a_campaign(tmp_path):
    assert compose_oracle("emt", ["fmax=0.02"]).options.fmax == 0.02
    with pytest.raises(ConfigError, match="did you mean 'fmax'"):
        compose_oracle("emt", ["fmaks=0.02"])
    with pytest.raises(ConfigError, match="did you mean 'chgnet'"):
        compose_oracle("chgnett")
    (tmp_path / "oracle").mkdir()
    Path(tmp_path, "oracle", "mine.yaml").write_text("name: emt\nfmax: 0.03\n")
    assert compose_oracle("mine", config_dir=tmp_path).options.fmax == 0.03
