"""The commands train, sample and evaluate csp, from files to files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Structure
from pymatgen.core.lattice import Lattice
from typer.testing import CliRunner

from discovery import plugins
from discovery.cli import app
from discovery.crystal import Crystal
from discovery.errors import ConfigError, DiscoveryError, InvalidInputError
from discovery.evaluation.csp import headline, predict
from discovery.sets import CrystalSet, Member
from discovery.training_data import read_training_data, split, without_system
from discovery.types import Failure, FailureKind, Sample, Stability
from tests.discovery.campaigns import outcome, tiny_config
from tests.discovery.campaigns import run as launch

ROCK_SALTS = {"Mg": 4.212, "Ca": 4.811, "Sr": 5.160, "Ba": 5.539}
"""Lattice constants of the oxides, Å."""

TINY = [
    "token.width=16", "token.pair_width=8", "token.layers=1", "token.frequencies=3", "token.radial=8",
    "training.batch_size=4", "training.micro_batches=1", "training.warmup_steps=2", "log_every=5", "validate_every=5",
]  # fmt: skip


def rock_salt(metal: str) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(ROCK_SALTS[metal]), [metal, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "oxides.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif", "e_above_hull"])
        for number, metal in enumerate(ROCK_SALTS):
            writer.writerow([f"x-{metal}", rock_salt(metal).to(fmt="cif"), 0.01 * number])
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    arguments = ["train", str(data), *TINY, "training.steps=10", "--validation", str(data), "--out", str(out), "--json"]
    result = json.loads(run(*arguments, "--leave-out", "Mg-O"))
    assert Path(result["checkpoint"]) == out / "checkpoint.safetensors"
    return out


def test_training_writes_a_log_a_checkpoint_and_goes_on(trained: Path, data: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [5, 10]
    assert [set(row["validation"]) for row in rows if "validation" in row] == [{"coordinates", "lattice"}] * 2
    parts = ["train", str(data), *TINY, "--validation", str(data), "--out", str(tmp_path), "--leave-out", "Mg-O"]
    run(*parts, "training.steps=5", "training.final_learning_rate=1")
    run(*parts, "training.steps=10", "training.final_learning_rate=1")
    resumed = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert resumed == [5, 5, 10, 10]


def test_training_ends_early_when_validation_stops_improving(data: Path, tmp_path: Path):
    out = run(
        "train", str(data), *TINY, "training.steps=200", "training.learning_rate=0.1", "patience=2",
        "--validation", str(data), "--out", str(tmp_path), "--json",
    )  # fmt: skip
    best = json.loads(out)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in rows)
    assert last < 200
    assert last == best["step"] + 10
    totals = {row["step"]: sum(row["validation"].values()) for row in rows if "validation" in row}
    assert best["validation_loss"] == pytest.approx(min(totals.values()))
    assert totals[best["step"]] == min(totals.values())


def test_training_that_diverges_says_so(data: Path, tmp_path: Path):
    arguments = ["train", str(data), *TINY, "training.steps=20", "training.learning_rate=1e6", "--out", str(tmp_path)]
    with pytest.raises(InvalidInputError, match=r"diverged.*learning_rate"):
        CliRunner().invoke(app, [*arguments, "--validation", str(data)], catch_exceptions=False)


@pytest.mark.slow
def test_ray_trains_with_several_workers_and_goes_on(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    arguments = [
        sys.executable, "-m", "discovery", "train", str(data), *TINY, "training.zero_stage=1", "--out", str(out),
        "training.final_learning_rate=1", "--validation", str(data), "--json",
    ]  # fmt: skip

    def together(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*arguments, "--workers", "2", *more], capture_output=True, text=True, timeout=500, check=False
        )

    done = together("training.steps=5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == str(out / "checkpoint.safetensors")
    assert len(list((out / "state").glob("*/*optim_states.pt"))) == 2
    refused = together("training.steps=20", "training.learning_rate=1e6")
    assert refused.returncode == 1
    assert "the training diverged: the validation loss is nan at step 10" in refused.stderr
    assert "Traceback" not in refused.stderr
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [5, 10]


def test_sampling_writes_crystals_of_the_composition(trained: Path, tmp_path: Path):
    checkpoint = str(trained / "checkpoint.safetensors")
    paths = run(
        "sample", "steps=4", "--composition", "Mg2Si", "--n", "3", "--out", str(tmp_path), "--checkpoint", checkpoint,
        "--guidance", "e_above_hull=0",
    ).split()  # fmt: skip
    assert [Path(path).name for path in paths] == [f"Mg2Si_{i:03d}.cif" for i in range(3)]
    for path in paths:
        assert Structure.from_file(path).composition == Composition("Mg2Si")


def test_sampling_without_composition_takes_those_of_training_crystals(trained: Path, tmp_path: Path):
    paths = run(
        "sample", "steps=2", "--n", "3", "--out", str(tmp_path), "--guidance", "space_group=Fm-3m",
        "--checkpoint", str(trained / "checkpoint.safetensors"),
    ).split()  # fmt: skip
    assert len(paths) == 3
    assert {e.symbol for path in paths for e in Structure.from_file(path).composition} <= {"Ca", "Sr", "Ba", "O"}


def test_prediction_prints_its_figures_as_json(trained: Path, data: Path):
    out = run(
        "evaluate", "csp", str(data), "steps=4", "--samples", "2", "--limit", "3", "--json",
        "--checkpoint", str(trained / "checkpoint.safetensors"),
    )  # fmt: skip
    result = json.loads(out)
    assert result["n"] == 3
    assert result["samples"] == 2
    assert result["seconds"] > 0
    assert result["result"]["requested"] == sum(result["result"]["outcome_counts"].values()) == 3
    assert len(result["result"]["protocol_hash"]) == 64
    for kind in ("all", "valid"):
        rate, rmse = result["match_rate"][kind], result["rmse"][kind]
        assert rate in (0, 1 / 3, 2 / 3, 1)
        assert (rmse is None) == (rate == 0)
    assert result["match_rate"]["valid"] <= result["match_rate"]["all"]


def test_random_search_is_predicted_with_by_the_same_command(data: Path):
    result = json.loads(run("evaluate", "csp", str(data), "--generator", "random_search", "--limit", "2", "--json"))
    assert result["n"] == 2


class Copies:
    """Gives for each target first a crystal far from the truth, then the truth, and nothing for every third target."""

    def __init__(self, truths, shift):
        self.truths, self.shift = iter(truths), shift
        self.made = 0

    def sample(self, targets, *, seed):
        samples = []
        for index, (_, truth) in enumerate(zip(targets, self.truths, strict=False)):
            frac = truth.frac_coords.copy()
            frac[0] += self.shift
            moved = Crystal(truth.lattice, frac, truth.atomic_numbers)
            self.made += 1
            lost = Failure(FailureKind.INVALID_INPUT, "every third")
            second = Sample(index, None, lost) if self.made % 3 == 0 else Sample(index, truth)
            samples += [Sample(index, moved), second]
        return samples


def crystal_set(*crystals: Crystal | None) -> CrystalSet:
    members = [
        Member(f"c{number}", crystal, problem=None if crystal is not None else "unreadable")
        for number, crystal in enumerate(crystals)
    ]
    return CrystalSet(Path("truth.csv"), "", tuple(members))


def test_the_best_sample_counts():
    truths = [Crystal.from_structure(rock_salt(metal).get_primitive_structure()) for metal in ("Mg", "Ca", "Sr")]
    generator = Copies(truths, np.array([0.02, 0, 0]))
    result = predict(generator, crystal_set(*truths[:2], None, truths[2]), samples=2, seed=0)
    assert result.metric("match_rate").value == 1
    assert result.metric("match_rate").n == 3
    ((displacements,),) = [series.values() for series in result.distributions.values()]
    assert displacements[:2] == pytest.approx([0, 0], abs=1e-6)
    volume_per_atom = truths[2].volume / 2
    displacement = np.linalg.norm(np.array([0.02, 0, 0]) @ truths[2].lattice)
    expected = displacement / 2 / volume_per_atom ** (1 / 3)  # the matcher shares it between the two atoms
    assert displacements[2] == pytest.approx(expected, rel=1e-3)
    assert result.metric("rmse").value == pytest.approx(expected / 3, rel=1e-3)
    assert result.metric("valid_distances").value == pytest.approx(5 / 6)
    assert result.outcomes == {"c0": "match", "c1": "match", "c2": "unusable: unreadable", "c3": "match"}
    assert result.costs[0].n == 6


def test_large_sets_are_predicted_in_lots(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("discovery.evaluation.csp.TARGETS_AT_ONCE", 2)
    truths = [Crystal.from_structure(rock_salt(metal).get_primitive_structure()) for metal in ("Mg", "Ca", "Sr")]
    done: list[tuple[str, int]] = []
    result = predict(
        Copies(truths, np.zeros(3)), crystal_set(*truths), samples=2, seed=0, progress=lambda *step: done.append(step)
    )
    assert result.metric("rmse").value == pytest.approx(0, abs=1e-6)
    assert done == [("sampling", 2), ("sampling", 1), *[("matching", 1)] * 3]


def test_invalid_samples_match_only_when_all_count():
    close = Crystal(3 * np.eye(3), [[0, 0, 0], [0.1, 0, 0]], [1, 1])  # 0.3 Å apart
    charged = Crystal(4 * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]], [11, 9, 9])  # NaF2
    for truth, valid_rate in ((close, 0.0), (charged, 1.0)):
        result = predict(Copies([truth], np.zeros(3)), crystal_set(truth), samples=2, seed=0)
        shown = headline(result)
        assert shown["match_rate"] == {"all": 1.0, "valid": 0.0}
        assert shown["rmse"]["valid"] is None
        assert shown["valid_rate"] == valid_rate
        assert result.outcomes == {"c0": "match, invalid"}


class Nothing:
    def sample(self, targets, *, seed):
        lost = Failure(FailureKind.INVALID_INPUT, "too large")
        return [Sample(index, None, lost) for index, target in enumerate(targets) for _ in range(target.n_samples)]


def test_nothing_matched_has_no_rmse():
    truth = Crystal.from_structure(rock_salt("Mg"))
    result = predict(Nothing(), crystal_set(truth), samples=2, seed=0)
    assert headline(result)["rmse"] == {"all": None, "valid": None}
    assert result.metric("match_rate").value == 0
    assert result.metric("crmse").value == 0.5
    assert result.outcomes == {"c0": "no sample: too large"}


def test_a_set_without_crystals_cannot_be_predicted():
    with pytest.raises(InvalidInputError, match="no crystal to predict"):
        predict(Nothing(), crystal_set(None), samples=1, seed=0)


def test_data_of_every_kind_are_read(data: Path, tmp_path: Path):
    from_csv = read_training_data(data)
    assert [item.properties["e_above_hull"] for item in from_csv] == [0.0, 0.01, 0.02, 0.03]
    entries = tmp_path / "entries.json"
    entries.write_text(
        json.dumps(
            [
                {"entry_id": m, "structure": rock_salt(m).as_dict(), "energy": -1.0, "data": {"e_above_hull": 0.5}}
                for m in ("Mg", "Ca")
            ]
        )
    )
    from_json = read_training_data(entries)
    assert [(item.id, item.properties) for item in from_json] == [
        ("Mg", {"e_above_hull": 0.5}),
        ("Ca", {"e_above_hull": 0.5}),
    ]
    assert [item.id for item in without_system(from_csv, ["Ca", "O", "Sr"])] == ["x-Mg", "x-Ba"]
    train, held_out = split(from_csv, 0.25, 0)
    assert len(train) == 3
    assert {item.id for item in (*train, *held_out)} == {item.id for item in from_csv}
    with pytest.raises(InvalidInputError, match="cannot be split"):
        split(from_csv[:1], 0.5, 0)


def test_a_campaign_gives_what_it_found_to_be_stable_or_metastable(tmp_path: Path):
    found = outcome(launch(tiny_config(tmp_path / "run")))["candidates"]
    expected = {
        id_: verdict.e_above_hull
        for id_, *_, verdict in found
        if verdict is not None and verdict.stability is not Stability.UNSTABLE
    }
    assert expected
    crystals = read_training_data(tmp_path / "run")
    assert {item.id: item.properties["e_above_hull"] for item in crystals} == expected
    assert {e.symbol for item in crystals for e in item.crystal.composition} <= {"Cu", "Au"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["train", "DATA", "training.step=5", "--out", "x"], ConfigError, "training.step .*did you mean 'steps'"),
        (["train", "DATA", "unet3d.layout.slot=5", "--out", "x"], ConfigError, "unet3d.layout.slot .*'slots'"),
        (["train", "DATA", "variant=tokens", "--out", "x"], ConfigError, "did you mean 'token'"),
        (["train", "DATA", "--generator", "random_search", "--out", "x"], ConfigError, "no weights to train"),
        (["train", "training.steps=5", "--out", "x"], InvalidInputError, "nothing to train on"),
        (["train", "nowhere.csv", "--out", "x"], InvalidInputError, "nowhere.csv does not exist"),
        (["sample", "--composition", "Mg", "--elements", "Mg-Si", "--out", "x"], InvalidInputError, "not both"),
        (["sample", "--composition", "Mg0.5Si", "--out", "x"], InvalidInputError, "whole numbers"),
        (["sample", "--composition", "Mg", "--guidance", "hard", "--out", "x"], InvalidInputError, "PROPERTY=NUMBER"),
        (["sample", "--guidance", "space_group=Fm-3k", "--out", "x"], InvalidInputError, "Fm-3k.*symbol such as Fm-3m"),
        (["sample", "--composition", "Mg", "step=5", "--out", "x"], ConfigError, "did you mean 'steps'"),
        (["sample", "--composition", "Mg", "--generator", "unimate", "--out", "x"], ConfigError, "'unimat'"),
        (["sample", "--composition", "Xx2", "--generator", "random_search", "--out", "x"], DiscoveryError, "Xx"),
    ],
)
def test_wrong_arguments_are_explained(arguments, error, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, given, catch_exceptions=False)


def test_every_training_option_is_described():
    config = plugins.load("generators", "unimat").TrainConfig
    assert [name for name, field in config.model_fields.items() if not field.description] == []
