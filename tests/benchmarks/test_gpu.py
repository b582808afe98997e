"""The script for short runs on a GPU, run on the CPU: it needs little, goes on, and gives a checkpoint."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from discovery.crystal import Crystal
from discovery.types import Target
from generators.unimat.generator import UniMatConfig, UniMatGenerator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_goes_on_and_its_weights_become_a_checkpoint(tmp_path: Path):
    file = tmp_path / "salts.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["material_id", "cif", "e_above_hull"])
        for metal, a in ((3, 5.1), (11, 5.6), (19, 6.3), (37, 6.6)):
            cell = a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
            crystal = Crystal(cell, [[0, 0, 0], [0.5, 0.5, 0.5]], [metal, 17])
            writer.writerow([f"x{metal}", crystal.to_structure().to(fmt="cif"), 0.0])
    run("prepare", file, "--validation", file, "--out", tmp_path / "data")
    train = ["train", tmp_path / "data", "--out", tmp_path / "run", "--seconds", 100, "--width", 16, "--batch-size", 4]
    for steps in (4, 8):
        table = run(*train, "--parts", 2, "--log-every", 2, "--steps", steps)
        assert table.splitlines()[0].startswith(f"step {steps},")
        assert {line.split("\t")[0] for line in table.splitlines()[1:]} == {
            "validation coordinates",
            "validation lattice",
        }
    log = json.loads((tmp_path / "run" / "training.json").read_text())["results"]["log"]
    assert [row["step"] for row in log if "loss" in row] == [2, 4, 6, 8]
    assert run(*train, "--seconds", 1).startswith("step ")  # ends by time
    checkpoint = tmp_path / "checkpoint.safetensors"
    run("export", tmp_path / "run", tmp_path / "data", "--out", checkpoint)
    generator = UniMatGenerator(UniMatConfig(checkpoint=checkpoint, steps=2, device="cpu"))
    target = Target(1, composition={"Na": 1, "Cl": 1}, guidance={"space_group": 225.0})
    assert generator.sample([target], seed=0)[0].crystal is not None


@pytest.mark.slow
def test_throughput_is_measured_for_both_variants_and_needs_torch_and_numpy_alone(tmp_path: Path):
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(('pymatgen', 'pydantic', 'safetensors', 'scipy', 'ase')));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["throughput", "--out", str(tmp_path), "--seconds", "60", "--atoms", "4", "--batches", "2"]
    arguments += ["--dense-batches", "1", "--width", "8", "--evaluations", "2"]
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["token", "4", "2"], ["unet3d", "4", "1"]]
    assert all(float(row[3]) > 0 for row in rows[1:])
