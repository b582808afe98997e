"""Every command on every odd crystal: no crash, no hang, no silent drop, and counts that add up."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from discovery.cli import app
from discovery.crystal import Crystal

CELL = np.eye(3) * 4
DISORDERED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def crystal(*args, **kwargs):
    return Crystal.from_atoms(Atoms(*args, pbc=True, **kwargs)).to_dict()


ODD = {
    "ordinary": Crystal.from_atoms(bulk("Cu")).to_dict(),
    "not a number": crystal("Cu", cell=CELL) | {"lattice": [[float("nan")] * 3] * 3},
    "infinite": crystal("Cu", cell=CELL) | {"frac_coords": [[float("inf"), 0, 0]]},
    "empty": crystal(cell=CELL),
    "element": Crystal.from_atoms(bulk("Au")).to_dict(),
    "noble gas": Crystal.from_atoms(bulk("Ar", "fcc", a=5.3)).to_dict(),
    "noble compound": crystal("CuAr", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=CELL),
    "one atom": crystal("Cu", cell=np.eye(3) * 2.5),
    "large": crystal("Cu200", scaled_positions=np.random.default_rng(0).random((200, 3)), cell=np.eye(3) * 15),
    "overlapping": crystal("CuAu", scaled_positions=[[0, 0, 0], [0.001, 0, 0]], cell=CELL),
    "on top": crystal("Cu2", scaled_positions=[[0, 0, 0], [0, 0, 0]], cell=CELL),
    "needle": crystal("Cu", cell=np.diag([0.6, 0.6, 2000.0])),
    "flat": crystal("Cu", cell=CELL) | {"lattice": [[4, 0, 0], [0, 4, 0], [4, 4, 0]]},
    "unknown element": crystal("Cu", cell=CELL) | {"atomic_numbers": [119]},
    "rare element": crystal("Og", cell=CELL),
    "partially occupied": DISORDERED.as_dict(),
    "broken": {"format": "discovery.crystal/1"},
    "nothing": {},
}


@pytest.fixture
def odd(tmp_path):
    """As entries with energies, so that every command takes them."""
    items = []
    for name, item in ODD.items():
        items.append({"entry_id": name, **item, "name": name})
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(items))
    return path


@pytest.fixture
def hull(tmp_path):
    frames = [bulk("Cu"), bulk("Au")]
    for atoms in frames:
        atoms.info["energy"] = 0.0
    write(tmp_path / "hull.extxyz", frames)
    return tmp_path / "hull.extxyz"


def evaluated(tmp_path, *arguments):
    """Run a command with table, JSON and page; return the JSON."""
    out = tmp_path / "out.json"
    run = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out), "--html", str(tmp_path / "page.html")])
    assert run.exit_code == 0, run.output + repr(run.exception)
    assert "requested" in run.output
    assert "GPU-s" in run.output
    return json.loads(out.read_text())


N_ODD = len(ODD)


def check(result, n=N_ODD):
    assert result["requested"] == len(result["outcomes"]) == sum(result["outcome_counts"].values()) == n
    assert all(result["outcomes"].values())
    assert len(result["protocol_hash"]) == 64
    assert all(len(one["sha256"]) == 64 for one in result["inputs"].values())
    for metric in result["metrics"]:
        assert metric["value"] is None or metric["interval"] is not None, metric["name"]


def test_proxy(tmp_path, odd, hull):
    small = tmp_path / "small.json"  # fingerprints of 200 atoms take tens of seconds
    small.write_text(json.dumps([item for item in json.loads(odd.read_text()) if item["entry_id"] != "large"]))
    result = evaluated(tmp_path, "evaluate", "proxy", small, "--reference", hull)
    check(result, N_ODD - 1)
    assert result["outcomes"]["partially occupied"].endswith("partially occupied sites")
    assert result["outcomes"]["overlapping"] == "invalid: distances"
    alone = evaluated(tmp_path, "evaluate", "proxy", odd)
    check(alone)
    reasons = ("invalid: distances", "invalid: charges")
    lost = [{id_ for id_, fate in one["outcomes"].items() if fate in reasons} for one in (alone, result)]
    assert lost[0] - {"large"} == lost[1]


@pytest.mark.parametrize("matcher", ["ordered", "disordered"])
def test_stability(tmp_path, odd, hull, matcher):
    arguments = ("evaluate", "stability", odd, "--hull", hull, "--oracle", "emt", "--matcher", matcher, "max_steps=20")
    result = evaluated(tmp_path, *arguments)
    check(result)
    fates = result["outcomes"]
    assert fates["noble gas"] == fates["noble compound"] == "failed: invalid_input"
    assert fates["on top"] == fates["overlapping"] == "invalid: atoms too close"
    assert fates["needle"] == "failed: unphysical"
    assert fates["nothing"].startswith("unusable")
    assert fates["ordinary"].startswith("stable ≤ 0.025") or fates["ordinary"].startswith("stable ≤ 0 ")


def test_stability_with_given_energies(tmp_path, hull):
    frames = []
    for name, item in ODD.items():
        if isinstance(item.get("atomic_numbers"), list) and 119 not in item["atomic_numbers"]:
            cell = np.nan_to_num(np.array(item["lattice"], dtype=float), nan=4.0)
            fractions = np.nan_to_num(np.array(item["frac_coords"], dtype=float).reshape(-1, 3), posinf=0.5)
            info = {"id": name.replace(" ", "_"), "energy": float("nan") if name == "element" else 1.0}
            numbers = item["atomic_numbers"]
            frames.append(Atoms(numbers, positions=fractions @ cell, cell=cell, pbc=True, info=info))
    path = tmp_path / "given.extxyz"
    write(path, [atoms for atoms in frames if len(atoms)])
    result = evaluated(tmp_path, "evaluate", "stability", path, "--hull", hull)
    check(result, sum(bool(len(atoms)) for atoms in frames))
    assert result["outcomes"]["noble_gas"] == "undefined: the hull has no Ar"
    assert result["outcomes"]["element"] == "failed: no energy is given"


@pytest.mark.parametrize("matcher", ["ordered", "disordered"])
def test_reconstruction(tmp_path, odd, matcher):
    frames = [bulk("Cu") for _ in ODD]
    write(tmp_path / "truth.extxyz", frames)
    result = evaluated(tmp_path, "evaluate", "reconstruction", odd, tmp_path / "truth.extxyz", "--matcher", matcher)
    check(result)
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["METRe"] == 1.0  # "ordinary" matches all of them
    assert values["match_rate"] == pytest.approx(2 / len(ODD)) or values["match_rate"] == pytest.approx(1 / len(ODD))


def test_csp(tmp_path, odd):
    result = evaluated(tmp_path, "evaluate", "csp", odd, "--generator", "random_search")
    check(result["result"])
    fates = result["result"]["outcomes"]
    usable = [fate for fate in fates.values() if not fate.startswith("unusable")]
    assert len(usable) == result["n"] == 11
    assert fates["large"].startswith("no sample: Cu200 has 200 atoms")
    assert fates["partially occupied"].endswith("partially occupied sites")


def test_pairs(tmp_path, odd, hull):
    check(evaluated(tmp_path, "evaluate", "pairs", hull, hull, "--hull", hull), 4)
    run = CliRunner().invoke(app, ["evaluate", "pairs", str(odd), str(hull)])
    assert run.exit_code == 1  # none of the odd ones has an energy
    assert "no energies of the same kind" in str(run.exception)


def test_hull(tmp_path, hull):
    rows = [
        "id,formula,energy_per_atom",
        "a,CuAu,-1",
        "b,CuAu,nan",
        "c,,-1",
        "d,Ar,-1",
        "e,Xx2,0",
        "f,Cu,1",
        "g,CuAu,inf",
    ]
    path = tmp_path / "odd.csv"
    path.write_text("\n".join(rows) + "\n")
    run = CliRunner().invoke(app, ["hull", str(path), "--reference", str(hull), "--json"])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert len(report["results"]) == 7
    assert [("problem" in item) for item in report["results"]] == [False, True, True, True, True, False, True]


def test_compare_survives_generators_that_fail(tmp_path, hull):
    arguments = ("compare", "Cu1Au1", "Cu40Au40", "--hull", hull, "--samples", "2", "--oracle", "emt")
    result = evaluated(
        tmp_path, *arguments, "--generator", "random_search", "--generator", "substitution", "--matcher", "disordered"
    )
    for one in result["results"].values():
        check(one, 4)
        assert any("80 atoms" in outcome for outcome in one["outcomes"].values())  # too many for both
    assert "plotly" in (tmp_path / "page.html").read_text().lower()


def test_wrong_compositions_and_settings_are_refused(hull):
    for given, message in (("Cu0.5", "whole numbers"), ("Xx", "Xx"), ("emt.fmax", "="), ("other.fmax=1", "NAME.KEY")):
        run = CliRunner().invoke(
            app, ["compare", given, "--hull", str(hull), "--generator", "random_search", "--oracle", "emt"]
        )
        assert run.exit_code != 0
        if given != "emt.fmax":
            assert message in str(run.exception)
