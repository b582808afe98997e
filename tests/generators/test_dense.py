"""UniMat's dense variant: the U-Net's symmetry, the sampler with an exact denoiser, what is guaranteed and learned."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from discovery.crystal import Crystal
from discovery.types import FailureKind, LabelledCrystal, Target
from generators.data import CrystalArrays
from generators.diffusion import Sampler, alpha_sigma
from generators.training import TrainingConfig
from generators.unimat.dense import DenseModel, DenseModelConfig
from generators.unimat.generator import UniMatConfig, UniMatGenerator
from generators.unimat.representation import DenseLayout, encode, presence
from generators.unimat.train import UniMatTrainConfig, train_model, validation_loss
from generators.unimat.unet import UNet3D
from generators.unimat.weights import load_checkpoint

GROUPS = (1, 2, 17)
SMALL = {"width": 8, "blocks": 1, "head_dim": 8}


def binaries() -> list[LabelledCrystal]:
    """Alkali halides in the rock-salt and caesium-chloride types, and a fluorite."""
    fcc = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    ends = [[0, 0, 0], [0.5, 0.5, 0.5]]
    crystals = [Crystal(a * fcc, ends, [z, 17]) for a, z in ((5.1, 3), (5.6, 11), (6.3, 19))]
    crystals += [Crystal(a * np.eye(3), ends, [55, z]) for a, z in ((4.1, 17), (4.3, 35))]
    crystals.append(Crystal(5.46 * fcc, [[0, 0, 0], [0.25] * 3, [0.75] * 3], [20, 9, 9]))
    return [LabelledCrystal(c, {"band_gap": 5.0 + i}, f"c{i}") for i, c in enumerate(crystals)]


@pytest.fixture(scope="module")
def data() -> CrystalArrays:
    return CrystalArrays.from_crystals(binaries(), ("band_gap",))


CONFIG = UniMatTrainConfig(
    variant="unet3d",
    unet3d=DenseModelConfig(DenseLayout(1, groups=GROUPS), dropout=0.05, **SMALL),
    training=TrainingConfig(
        steps=60, batch_size=12, micro_batches=1, warmup_steps=5, learning_rate=3e-3, ema_decay=0.9
    ),
    validate_every=20,
    log_every=20,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = train_model(binaries(), binaries(), CONFIG, tmp_path_factory.mktemp("unet3d"), {})
    return Path(checkpoint.path)


def randomise(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("table", [(9, 18), (1, 1), (9, 2), (4, 5)])
def test_network_is_equivariant_to_the_order_of_slots(table):
    network = UNet3D(4, 3, table, property_names=("band_gap",), **SMALL).eval()
    randomise(network)
    x = torch.randn(2, 4, 3, *table)
    log_snr, properties = torch.tensor([-3.0, 5.0]), torch.tensor([[1.0], [torch.nan]])
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        output = network(x, log_snr, properties)
        permuted = network(x[:, :, order], log_snr, properties)
        other_noise = network(x, log_snr + 1, properties)
        other_property = network(x, log_snr, torch.tensor([[2.0], [torch.nan]]))
    assert output.shape == (2, 3, 3, *table)
    torch.testing.assert_close(permuted, output[:, :, order], atol=1e-4, rtol=1e-3)
    assert (other_noise - output).abs().max() > 1e-3
    assert (other_property - output)[0].abs().max() > 1e-3
    torch.testing.assert_close(other_property[1], output[1])


def test_a_sub_table_needs_no_number_of_slots():
    config = UniMatTrainConfig.model_validate(
        {"variant": "unet3d", "unet3d": {"layout": {"periods": [2], "groups": [14]}}}
    )
    assert config.unet3d.layout.shape[1:] == (1, 1)
    assert config.unet3d.layout.atomic_numbers == 6


def test_network_of_the_paper_pools_by_three_and_attends_at_every_level():
    with torch.device("meta"):
        network = UNet3D(9, 9, (9, 18), width=256)
    assert [pool.stride for pool in network.pool] == [(1, 3, 3), (1, 3, 3)]
    assert [len(stages) for stages in network.down] == [3, 3, 3]
    assert [stages[-1].table_attention.heads for stages in network.down] == [4, 8, 16]


class ExactDenoiser(torch.nn.Module):
    """What the perfect network answers when all crystals are one: x, or the noise or velocity that leads to it."""

    def __init__(self, atoms: torch.Tensor, lattice: torch.Tensor, parametrisation: str) -> None:
        super().__init__()
        self.x = torch.cat(
            [atoms.permute(0, 4, 1, 2, 3), lattice[..., None, None, None].expand(-1, -1, *atoms.shape[1:4])], 1
        )
        self.channels = atoms.shape[-1]
        self.parametrisation = parametrisation

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, properties: torch.Tensor) -> torch.Tensor:
        n_lattice = self.x.shape[1] - self.channels
        z = torch.cat([x[:, : self.channels], x[:, -n_lattice:]], 1)
        alpha, sigma = (value[:, None, None, None, None] for value in alpha_sigma(log_snr))
        if self.parametrisation == "x":
            return self.x.expand_as(z)
        noise = (z - alpha * self.x) / sigma
        return noise if self.parametrisation == "epsilon" else alpha * noise - sigma * self.x


@pytest.mark.parametrize("parametrisation", ["epsilon", "v", "x"])
@pytest.mark.parametrize("coordinates", ["fractional", "cartesian"])
@pytest.mark.parametrize("absence", ["occupancy", "null_location"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_sampler_with_an_exact_denoiser_gives_the_crystal(data, parametrisation, coordinates, absence, deterministic):
    layout = DenseLayout(1, groups=GROUPS, coordinates=coordinates, absence=absence)
    model = DenseModel(DenseModelConfig(layout, parametrisation=parametrisation, **SMALL)).eval()
    one = data.take([1])
    model.fit_normalisation(data.take([0, 1, 2, 3]))
    batch = model.batch(one)
    atoms = encode(batch.numbers, batch.frac, batch.vectors.float(), torch.zeros_like(batch.numbers), layout)
    lattice = model._lattice_numbers(batch.vectors, torch.tensor([2]))
    model.network = ExactDenoiser(atoms, lattice, parametrisation)
    options = {"generator": torch.Generator().manual_seed(3), "sampler": Sampler(30, deterministic=deterministic)}
    frac, vectors = model.sample(np.repeat(batch.numbers.numpy(), 2, axis=0), **options)
    metric, expected = vectors @ vectors.transpose(0, 2, 1), one.lattice @ one.lattice.transpose(0, 2, 1)
    np.testing.assert_allclose(metric, np.repeat(expected, 2, axis=0), atol=2e-2)
    difference = frac - one.frac
    np.testing.assert_allclose(difference - np.round(difference), 0, atol=2e-3)
    found = model.sample_elements(None, 2, **options)
    assert found.numbers.tolist() == [11, 17, 11, 17]


def test_losses_of_a_network_that_answers_zero(data):
    """Noise has variance 1, so each balanced loss is 1, and each mean-weighted one its share of the numbers."""
    layout = DenseLayout(2, groups=GROUPS, absence="null_location")
    batch = None
    totals = {}
    for weighting in ("balanced", "mean"):
        config = DenseModelConfig(
            layout, parametrisation="epsilon", loss_weighting=weighting,
            element_set_fraction=0.0, unconditional_fraction=1.0, **SMALL,
        )  # fmt: skip
        model = DenseModel(config).eval()
        batch = model.batch(dataclasses.replace(data, properties=np.zeros((len(data), 0)), property_names=()))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            totals[weighting] = torch.tensor([model(batch, generator) for _ in range(60)]).mean(0)
    places, atoms, crystals = 2 * 9 * 3, int(data.n_atoms.sum()), len(data)
    free = 2 * int((layout.atomic_numbers > 0).sum())
    shares = torch.tensor([3.0 * atoms, 3.0 * (free * crystals - atoms), 6.0 * places * crystals])
    torch.testing.assert_close(totals["balanced"], torch.ones(3), atol=0.15, rtol=0)
    torch.testing.assert_close(totals["mean"], shares / shares.sum(), atol=0.02, rtol=0.15)


def test_training_lowers_the_loss(trained, data):
    model, *_, metadata = load_checkpoint(trained)
    torch.manual_seed(0)
    untrained = DenseModel(model.config)
    untrained.fit_normalisation(data)
    before, after = validation_loss(untrained.eval(), data), validation_loss(model.eval(), data)
    assert sum(after) < 0.9 * sum(before)
    assert metadata["metrics"]["validation_loss"] == pytest.approx(sum(after), rel=1e-3)
    assert model.config.layout.slots == 2


def test_interrupted_training_ends_at_the_same_bits(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("generators.unimat.train.SAVE_EVERY", 15)
    interrupted = UniMatTrainConfig.model_validate({**CONFIG.model_dump(), "patience": 0})

    class KilledError(Exception):
        pass

    def kill(run, *_):
        raise KilledError

    with monkeypatch.context() as context:
        context.setattr("generators.unimat.train._Run._validate", kill)
        with pytest.raises(KilledError):
            train_model(binaries(), binaries(), interrupted, tmp_path, {})
    assert (tmp_path / "state" / "latest").read_text() == "global_step15"
    train_model(binaries(), binaries(), interrupted, tmp_path, {})
    (resumed, *_), (whole, *_) = load_checkpoint(tmp_path / "checkpoint.safetensors"), load_checkpoint(trained)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def generator(trained) -> UniMatGenerator:
    return UniMatGenerator(UniMatConfig(checkpoint=trained, steps=6, device="cpu"))


def test_compositions_are_exact_and_element_sets_are_kept(generator):
    targets = [
        Target(3, composition={"Ca": 1, "F": 2}),
        Target(4, elements=("Na", "Cl", "Fe")),
        Target(2, composition={"Fe": 1}),
        Target(1, composition={"Na": 3}),
    ]
    samples = generator.sample(targets, seed=5)
    assert [s.target for s in samples] == [0] * 3 + [1] * 4 + [2] * 2 + [3]
    assert [s.crystal.composition.formula for s in samples[:3]] == ["Ca1 F2"] * 3
    for sample in samples[3:7]:
        if sample.crystal is None:
            assert sample.failure.kind is FailureKind.UNPHYSICAL
        else:
            assert {e.symbol for e in sample.crystal.composition} <= {"Na", "Cl"}
    assert [s.failure.kind for s in samples[7:]] == [FailureKind.INVALID_INPUT] * 3
    assert "outside" in samples[7].failure.message
    assert "2 slots" in samples[9].failure.message
    assert [s.crystal for s in generator.sample(targets, seed=5)] == [s.crystal for s in samples]


def test_null_slots_stay_null_while_others_move(generator):
    model = generator._model
    numbers = np.array([[20, 9, 9]])
    steps = []
    model.sample(
        numbers,
        generator=torch.Generator().manual_seed(0),
        sampler=Sampler(5),
        on_step=lambda *state: steps.append(state),
    )
    assert [round(t, 6) for t, *_ in steps] == [0.8, 0.6, 0.4, 0.2]
    assert all(frac.shape == (1, 3, 3) and lattice.shape == (1, 3, 3) for _, frac, lattice in steps)
    occupied = torch.zeros(1, *model.config.layout.shape, dtype=torch.bool)
    occupied[0, 1, 3, 1] = True
    known = model.known(occupied, occupied.any(1), torch.tensor([True]))
    noisy = known.put_back(torch.randn(known.free.shape))
    assert torch.equal(presence(noisy, model.config.layout), occupied)
    assert (noisy[..., :3][~occupied] == 0).all()
    assert (noisy[..., :3][occupied] != 0).all()


def test_all_elements_together_restrict_nothing(generator):
    model = generator._model
    everything = tuple(e for e in ("H", "Li", "Na", "K", "Rb", "Cs", "Fr", "Be", "Mg", "Ca", "Sr", "Ba", "Ra",
                                   "F", "Cl", "Br", "I", "At", "Ts", "Lu", "Lr"))  # fmt: skip
    sampled = generator.sample([Target(3, elements=everything)], seed=2)
    free = model.sample_elements(
        None,
        3,
        generator=torch.Generator().manual_seed(int(np.random.default_rng([2, 0]).integers(2**62))),
        sampler=Sampler(6),
    )
    assert [len(s.crystal) if s.crystal else 0 for s in sampled] == free.n_atoms.tolist()


def test_guidance_changes_samples(generator):
    plain = Target(1, composition={"Na": 1, "Cl": 1})
    guided = Target(1, composition={"Na": 1, "Cl": 1}, guidance={"band_gap": 9.0})
    a, b = (generator.sample([target], seed=1)[0].crystal for target in (plain, guided))
    assert a != b


def test_learning_leaves_out_what_does_not_fit(trained, tmp_path):
    config = UniMatConfig(
        checkpoint=trained, steps=6, device="cpu", learn={"steps": 5, "batch_size": 8, "max_loss_increase": 10.0}
    )
    generator = UniMatGenerator(config)
    iron = LabelledCrystal(Crystal(2.87 * np.eye(3), [[0, 0, 0]], [26]), {}, "iron")
    assert generator.learn([iron], seed=0, folder=tmp_path) is None
    child = generator.learn([iron, binaries()[0]], seed=0, folder=tmp_path)
    assert child is not None
    assert child.trained_on == ("c0",)
    other = UniMatGenerator(config)
    other.load(child)
    assert other.checkpoint == child
