"""Fine-tuning: a force field learns another oracle's energies, and its checkpoint is an oracle of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from typer.testing import CliRunner

from discovery.cli import app
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.types import EnergyScale, Evaluation
from oracles.chgnet import CHGNetOracle
from oracles.emt import EMTOracle
from oracles.finetune import FineTuneConfig
from oracles.matgl import MatGLOracle
from oracles.sevennet import SevenNetOracle
from tests.discovery import campaigns


def alloys(n: int) -> list[Crystal]:
    """Distorted copper, gold and CuAu, at several volumes."""
    rng = np.random.default_rng(0)
    crystals = []
    for _ in range(n):
        atoms = bulk("Cu", orthorhombic=True, a=rng.uniform(3.65, 4.15))
        atoms.symbols[: rng.integers(0, 3)] = "Au"
        atoms.positions += 0.1 * rng.standard_normal((2, 3))
        crystals.append(Crystal.from_atoms(atoms))
    return crystals


@pytest.fixture(scope="module")
def results() -> list[Evaluation]:
    return EMTOracle(EMTOracle.Config(relax=False)).evaluate(alloys(24))


@pytest.fixture(
    scope="module",
    params=["chgnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("matgl", "sevennet"))],
)
def tuned(request, results, tmp_path_factory):
    """The oracle before, its checkpoint and the oracle made of that."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "chgnet":
        plugin, settings = CHGNetOracle, {}
    elif request.param == "matgl":
        plugin, settings = MatGLOracle, {"model": request.getfixturevalue("matgl_model")}
    else:
        request.getfixturevalue("sevennet_installed")
        plugin, settings = SevenNetOracle, {}
    oracle = plugin(plugin.Config(relax=False, **settings))
    parent = oracle.energy_scale
    config = FineTuneConfig(epochs=6, batch_crystals=6, learning_rate=1e-3)
    checkpoint = oracle.fine_tune(results[:18], results[18:], config=config, folder=folder, metadata={"note": "toy"})
    labels = {"functional": "EMT"} if plugin is MatGLOracle else {}
    return parent, oracle, checkpoint, plugin(plugin.Config(relax=False, model=checkpoint.path, **labels))


def test_errors_on_held_out_results_fall(tuned) -> None:
    """Beyond what the shift of elements explains."""
    _, _, checkpoint, _ = tuned
    assert checkpoint.metrics["energy_mae_after"] < 0.7 * checkpoint.metrics["energy_mae_before"]
    assert checkpoint.metrics["best_epoch"] > 0


def test_the_checkpoint_is_an_oracle_with_those_errors(tuned, results) -> None:
    """The errors that the training reports are those of the oracle that is loaded from the file."""
    _, _, checkpoint, loaded = tuned
    held_out = results[18:]
    answers = loaded.evaluate([evaluation.crystal for evaluation in held_out])
    errors = [a.energy_per_atom - e.energy_per_atom for a, e in zip(answers, held_out, strict=True)]
    assert np.abs(errors).mean() == pytest.approx(checkpoint.metrics["energy_mae_after"], abs=1e-5)


def test_the_checkpoint_has_its_own_energy_scale(tuned) -> None:
    parent, oracle, checkpoint, loaded = tuned
    assert checkpoint.parent == parent.potentials
    assert loaded.energy_scale.potentials == checkpoint.sha256 != parent.potentials
    assert loaded.energy_scale == oracle.energy_scale
    assert loaded.energy_scale.functional == "EMT"
    assert loaded.energy_scale.corrections == ""


def test_forces_are_still_the_gradient_of_the_energy(tuned) -> None:
    *_, loaded = tuned
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.positions[0] += [0.1, 0.05, 0.0]
    images = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[0, 0] += 0.01 * sign
        images.append(Crystal.from_atoms(moved))
    base, plus, minus = loaded.evaluate([Crystal.from_atoms(atoms), *images])
    assert base.forces[0, 0] == pytest.approx((minus.energy - plus.energy) / 0.02, rel=0.02, abs=5e-3)


def test_results_without_forces_are_enough(results, tmp_path: Path) -> None:
    scale = EnergyScale("recorded", "1", "PBE")
    bare = [Evaluation(scale, crystal=e.crystal, energy=e.energy, converged=True) for e in results[:6]]
    oracle = CHGNetOracle(CHGNetOracle.Config())
    checkpoint = oracle.fine_tune(bare[:4], bare[4:], config=FineTuneConfig(epochs=1), folder=tmp_path, metadata={})
    assert "force_mae_after" not in checkpoint.metrics
    assert checkpoint.metrics["energy_mae_after"] <= checkpoint.metrics["energy_mae_before"]


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    import torch

    from discovery.checkpoints import save

    save(tmp_path / "other.safetensors", {"weight": torch.zeros(1)}, {})
    with pytest.raises(InvalidInputError, match="holds no weights of CHGNet"):
        CHGNetOracle(CHGNetOracle.Config(model=str(tmp_path / "other.safetensors")))


@pytest.mark.slow
def test_a_campaign_teaches_its_screening_oracle(tmp_path: Path) -> None:
    """The command: reference results of a real campaign, new weights, a summary that scripts read; then the check."""
    run = campaigns.run(campaigns.small_config(tmp_path / "run"))
    out = tmp_path / "weights"
    arguments = ["finetune", str(run), "--oracle", "chgnet", "--out", str(out), "--set", "training.epochs=5"]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["metrics"]["energy_mae_after"] <= summary["metrics"]["energy_mae_before"]
    assert summary["learned_from"].startswith("emt")
    loaded = CHGNetOracle(CHGNetOracle.Config(model=summary["path"]))
    assert loaded.energy_scale.id == summary["energy_scale"]

    checked = CliRunner().invoke(app, ["check", "chgnet", f"model={summary['path']}", "--quick", "--json"])
    report = json.loads(checked.stdout)
    assert report["energy_scale"]["id"] == summary["energy_scale"]
    own = [check for check in report["checks"] if check["subject"].startswith("distorted")]
    assert len(own) == 8
    assert all(check["passed"] for check in own)

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0
    assert "is not empty" in str(again.exception)


def test_an_oracle_without_weights_cannot_be_adapted(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["finetune", str(tmp_path), "--oracle", "emt", "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "no weights to adapt" in str(result.exception)
