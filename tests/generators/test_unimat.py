"""UniMat's token variant: symmetries, training through DeepSpeed, resuming, fine-tuning and its guard."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Element

from discovery import checkpoints
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.types import FailureKind, LabelledCrystal, Target
from generators.data import CrystalArrays, shuffled_batches
from generators.training import TrainingConfig, resume_step, train
from generators.unimat.generator import UniMatConfig, UniMatGenerator, canonical
from generators.unimat.model import TokenModel, TokenModelConfig
from generators.unimat.representation import TABLE_POSITIONS
from generators.unimat.train import UniMatTrainConfig, train_model, validation_loss

SMALL = TokenModelConfig(width=32, pair_width=16, layers=2, frequencies=4, property_names=("band_gap",))


def rocksalt(a: float, cation: int, anion: int) -> Crystal:
    lattice = a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Crystal(lattice, [[0, 0, 0], [0.5, 0.5, 0.5]], [cation, anion])


def caesium_chloride(a: float, cation: int, anion: int) -> Crystal:
    return Crystal(np.eye(3) * a, [[0, 0, 0], [0.5, 0.5, 0.5]], [cation, anion])


def toys() -> list[LabelledCrystal]:
    crystals = [rocksalt(a, z, 17) for a in (5.0, 5.6, 6.2) for z in (3, 11, 19)]
    crystals += [caesium_chloride(a, 55, z) for a in (4.1, 4.3) for z in (17, 35)]
    return [LabelledCrystal(c, {"band_gap": 5.0 + i}) for i, c in enumerate(crystals)]


@pytest.fixture(scope="module")
def data() -> CrystalArrays:
    return CrystalArrays.from_crystals(toys(), ("band_gap",))


TRAINING = TrainingConfig(steps=200, batch_size=16, micro_batches=1, warmup_steps=10, learning_rate=3e-3, ema_decay=0.9)
TOKEN = UniMatTrainConfig(variant="token", token=SMALL, training=TRAINING, validate_every=100, log_every=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = train_model(toys(), toys(), TOKEN, tmp_path_factory.mktemp("token"), {"data": "toys"})
    return Path(checkpoint.path)


def test_periodic_table_places_every_element_once():
    assert len({tuple(position) for position in TABLE_POSITIONS[1:]}) == 118
    symbols = {
        "H": 1,
        "He": 2,
        "C": 6,
        "Sc": 21,
        "Cl": 17,
        "Hf": 72,
        "La": 57,
        "Lu": 71,
        "Ac": 89,
        "Rf": 104,
        "Og": 118,
    }
    expected = {
        "H": (0, 0), "He": (0, 17), "C": (1, 13), "Sc": (3, 2), "Cl": (2, 16), "Hf": (5, 3),
        "La": (7, 2), "Lu": (7, 16), "Ac": (8, 2), "Rf": (6, 3), "Og": (6, 17),
    }  # fmt: skip
    assert {s: tuple(TABLE_POSITIONS[z].tolist()) for s, z in symbols.items()} == expected


def test_arrays_round_trip(data: CrystalArrays, tmp_path: Path):
    data.save(tmp_path / "data.npz")
    read = CrystalArrays.load(tmp_path / "data.npz")
    for field in dataclasses.fields(CrystalArrays):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(data, field.name))
    chosen = data.take([4, 0])
    np.testing.assert_array_equal(chosen.numbers, [11, 17, 3, 17])


def random_model() -> TokenModel:
    torch.manual_seed(0)
    model = TokenModel(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_network_is_invariant_to_origin_and_image_and_equivariant_to_order(data: CrystalArrays):
    model = random_model()
    rng = np.random.default_rng(0)
    n = 5
    batch = model.batch(data.take([0]))
    batch = batch._replace(
        numbers=torch.tensor([[12, 14, 14, 8, 8]]), frac=torch.from_numpy(rng.random((1, n, 3))).float()
    )
    time = torch.tensor([0.4])
    with torch.no_grad():
        noise, v = model._predict(batch, time)
        shifted = batch._replace(frac=batch.frac + torch.tensor([0.3, -0.2, 0.7]) + torch.arange(n)[None, :, None])
        noise_shifted, v_shifted = model._predict(shifted, time)
        order = torch.tensor([3, 0, 4, 2, 1])
        permuted = batch._replace(numbers=batch.numbers[:, order], frac=batch.frac[:, order])
        noise_permuted, v_permuted = model._predict(permuted, time)
        padded = batch._replace(
            numbers=torch.nn.functional.pad(batch.numbers, (0, 2)),
            frac=torch.nn.functional.pad(batch.frac, (0, 0, 0, 2)),
        )
        noise_padded, v_padded = model._predict(padded, time)
    torch.testing.assert_close(noise_shifted, noise, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(v_shifted, v, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(noise_permuted, noise[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v_permuted, v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise_padded[:, :n], noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v_padded, v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise.sum(1), torch.zeros(1, 3), atol=1e-4, rtol=0)


def test_batch_does_not_depend_on_rotation_of_the_lattice(data: CrystalArrays):
    model = random_model()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    rotated = dataclasses.replace(data, lattice=data.lattice @ rotation)
    torch.testing.assert_close(model.batch(rotated).lattice, model.batch(data).lattice, atol=1e-5, rtol=1e-5)


def test_training_lowers_the_loss(trained: Path, data: CrystalArrays):
    torch.manual_seed(0)
    untrained = TokenModel(SMALL)
    untrained.fit_normalisation(data)
    before = validation_loss(untrained.eval(), data)
    after = validation_loss(UniMatGenerator(UniMatConfig(checkpoint=trained, device="cpu"))._model, data)
    assert sum(after) < 0.8 * sum(before)


def test_interrupted_training_ends_at_the_same_bits(data: CrystalArrays, tmp_path: Path):
    config = TrainingConfig(steps=12, batch_size=8, micro_batches=2, warmup_steps=2)

    def run(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = TokenModel(SMALL)
        model.fit_normalisation(data)
        start = resume_step(folder)
        batches = ([model.batch(p) for p in parts] for parts in shuffled_batches(data, 8, 2, seed=0, start=start))
        return train(model, batches, config, folder=folder, on_step=lambda done, *_: done == stop_at)

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 5)
    assert resume_step(tmp_path / "parts") == 5
    resumed = run(tmp_path / "parts", None)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_zero_stages_train_to_the_same_weights(data: CrystalArrays, zero_stage: int):
    def run(stage: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = TokenModel(SMALL)
        model.fit_normalisation(data)
        batches = ([model.batch(p) for p in parts] for parts in shuffled_batches(data, 8, 2, seed=0))
        return train(model, batches, TrainingConfig(steps=5, batch_size=8, micro_batches=2, zero_stage=stage))

    plain, partitioned = run(0), run(zero_stage)
    for name, tensor in plain.items():
        torch.testing.assert_close(partitioned[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_bf16_trains_to_nearly_the_same_weights(data: CrystalArrays):
    def run(*, bf16: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = TokenModel(SMALL)
        model.fit_normalisation(data)
        batches = ([model.batch(p) for p in parts] for parts in shuffled_batches(data, 8, 1, seed=0))
        weights = train(model, batches, TrainingConfig(steps=4, batch_size=8, micro_batches=1, bf16=bf16))
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
        return torch.cat([tensor.flatten() for tensor in weights.values()])

    full, half = run(bf16=False), run(bf16=True)
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, atol=5e-3, rtol=0)


def test_processes_share_out_the_crystals(data: CrystalArrays):
    n = len(data)
    labelled = dataclasses.replace(data, properties=np.arange(n, dtype=float)[:, None])

    def first(batch_size: int, rank: int, n_ranks: int) -> list[float]:
        parts = next(shuffled_batches(labelled, batch_size, 1, seed=3, rank=rank, n_ranks=n_ranks))
        return sorted(parts[0].properties[:, 0].tolist())

    parts = [first(4, rank, 3) for rank in range(3)]
    assert sorted(x for part in parts for x in part) == first(12, 0, 1)
    assert len({x for part in parts for x in part}) == 12


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path):
    csv_file = tmp_path / "toys.csv"
    rows = ["material_id,cif,e_above_hull"]
    for item in toys():
        cif = item.crystal.to_structure().to(fmt="cif").replace('"', "'")
        rows.append(f'{item.crystal.formula}-{len(rows)},"{cif}",0.0')
    csv_file.write_text("\n".join(rows))
    settings = ["token.width=16", "token.pair_width=8", "token.layers=1", "training.batch_size=4", "log_every=2"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "discovery", "train",
        str(csv_file), *settings, "training.micro_batches=1", "training.steps=4", "training.zero_stage=1",
        "--validation", str(csv_file), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [2, 4]
    assert UniMatGenerator(UniMatConfig(checkpoint=tmp_path / "run" / "checkpoint.safetensors")).checkpoint.sha256


def test_anti_annealing_brings_samples_closer_to_the_likely_crystal():
    target = Target(24, composition={"Mg": 1, "O": 1})

    def distance_from_rocksalt(slope: float) -> float:
        generator = UniMatGenerator(UniMatConfig(steps=50, anti_annealing=slope, device="cpu"))
        frac = np.array([sample.crystal.frac_coords for sample in generator.sample([target], seed=0)])
        displacement = (frac[:, 1] - frac[:, 0]) % 1.0
        return float(np.abs(displacement - 0.5).max(axis=1).mean())

    assert distance_from_rocksalt(8.0) < 0.5 * distance_from_rocksalt(0.0)


def test_sample_guarantees_composition_and_depends_on_seed_alone(trained: Path):
    generator = UniMatGenerator(UniMatConfig(checkpoint=trained, steps=8, device="cpu"))
    targets = [
        Target(3, composition={"Mg": 2, "Si": 1}),
        Target(2, composition={"Ge": 1}),
        Target(4, elements=("Mg", "Ge")),
    ]
    first, again, other = (generator.sample(targets, seed=seed) for seed in (5, 5, 6))
    assert [s.target for s in first] == [0] * 3 + [1] * 2 + [2] * 4
    assert all(s.crystal is not None for s in first)
    assert [s.crystal.composition.formula for s in first[:3]] == ["Mg2 Si1"] * 3
    assert {e.symbol for s in first[5:] for e in s.crystal.composition} <= {"Mg", "Ge"}
    assert [s.crystal for s in first] == [s.crystal for s in again]
    assert all(a.crystal != b.crystal for a, b in zip(first, other, strict=True))


def test_an_element_set_gets_compositions_of_training_crystals_with_like_elements(trained: Path):
    generator = UniMatGenerator(UniMatConfig(checkpoint=trained, steps=1, device="cpu"))
    made = generator.sample([Target(30, elements=("Rb", "I"))], seed=0)
    assert {frozenset(s.crystal.composition.as_dict().items()) for s in made} == {frozenset((("Rb", 1), ("I", 1)))}
    everything = tuple(Element.from_Z(z).symbol for z in range(1, 119))
    seen = {
        frozenset(s.crystal.composition.as_dict()) for s in generator.sample([Target(60, elements=everything)], seed=0)
    }
    assert seen <= {frozenset((metal, halogen)) for metal in ("Li", "Na", "K", "Cs") for halogen in ("Cl", "Br")}
    assert len(seen) > 5
    (refused,) = generator.sample([Target(1, elements=("Na",))], seed=0)
    assert refused.failure.kind is FailureKind.INVALID_INPUT
    assert "1 elements or fewer" in refused.failure.message


def test_training_that_begins_with_a_checkpoint_begins_at_its_loss(trained: Path, data: CrystalArrays, tmp_path: Path):
    config = TOKEN.model_copy(
        update={"initial": trained, "training": dataclasses.replace(TRAINING, steps=1, learning_rate=1e-9)}
    )
    child = train_model(toys(), toys(), config, tmp_path, {})
    parent = UniMatGenerator(UniMatConfig(checkpoint=trained, device="cpu"))
    assert child.metrics["validation_loss"] == pytest.approx(sum(validation_loss(parent._model, data)), rel=1e-4)
    assert UniMatGenerator(UniMatConfig(checkpoint=Path(child.path))).checkpoint.parent == parent.checkpoint.sha256


def test_guidance_changes_samples_and_unknown_guidance_is_refused(trained: Path):
    generator = UniMatGenerator(UniMatConfig(checkpoint=trained, steps=8, device="cpu"))
    plain = Target(1, composition={"Na": 1, "Cl": 1})
    guided = Target(1, composition={"Na": 1, "Cl": 1}, guidance={"band_gap": 9.0})
    a, b = (generator.sample([target], seed=1)[0].crystal for target in (plain, guided))
    assert a != b
    with pytest.raises(InvalidInputError, match=r"hardness.*band_gap"):
        generator.sample([Target(1, composition={"Na": 1}, guidance={"hardness": 1.0})], seed=0)


def test_learning_makes_a_child_that_another_generator_can_load(trained: Path, tmp_path: Path):
    config = UniMatConfig(checkpoint=trained, steps=8, device="cpu", learn={"steps": 30, "max_loss_increase": 10.0})
    generator = UniMatGenerator(config)
    parent = generator.checkpoint
    new = LabelledCrystal(rocksalt(7.5, 37, 53), {}, "r00-t000-s00")
    child = generator.learn([new], seed=3, folder=tmp_path)
    assert child is not None
    assert child.parent == parent.sha256
    assert child.trained_on == ("r00-t000-s00",)
    assert child.metrics["accepted"] == 1.0
    assert child.metrics["new_loss_after"] < child.metrics["new_loss_before"]
    other = UniMatGenerator(config)
    other.load(child)
    target = Target(2, composition={"Rb": 1, "I": 1})
    assert [s.crystal for s in other.sample([target], seed=1)] == [
        s.crystal for s in generator.sample([target], seed=1)
    ]
    Path(child.path).write_bytes(trained.read_bytes())
    with pytest.raises(InvalidInputError, match="has changed"):
        other.load(child)


def test_learning_that_hurts_keeps_the_parent(trained: Path, tmp_path: Path):
    learn = {"steps": 40, "learning_rate": 1.0, "max_loss_increase": 0.0}
    generator = UniMatGenerator(UniMatConfig(checkpoint=trained, steps=8, device="cpu", learn=learn))
    target = Target(1, composition={"Na": 1, "Cl": 1})
    before = generator.sample([target], seed=1)[0].crystal
    result = generator.learn([LabelledCrystal(rocksalt(5.6, 11, 17), {}, "a")], seed=0, folder=tmp_path)
    assert result is not None
    assert result.metrics["accepted"] == 0.0
    assert result.sha256 == generator.checkpoint.sha256
    assert generator.sample([target], seed=1)[0].crystal == before
    assert not list(tmp_path.iterdir())


def test_canonical_cell_is_primitive():
    conventional = rocksalt(5.6, 11, 17).to_structure().to_conventional()
    assert len(canonical(Crystal.from_structure(conventional))) == 2


def test_broken_checkpoints_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="does not exist"):
        UniMatGenerator(UniMatConfig(checkpoint=tmp_path / "none.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidInputError, match="not a safetensors file"):
        UniMatGenerator(UniMatConfig(checkpoint=broken))
    checkpoints.save(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"kind": "cdvae"})
    with pytest.raises(InvalidInputError, match="cdvae"):
        UniMatGenerator(UniMatConfig(checkpoint=tmp_path / "other.safetensors"))
