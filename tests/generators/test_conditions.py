"""Conditions: what a network is told of a crystal, and what guidance by it does to the samples of both variants."""

from pathlib import Path

import numpy as np
import pytest
import torch

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.matching import spacegroup
from discovery.types import LabelledCrystal, Target
from generators.conditions import PropertyEmbedding, hide
from generators.training import TrainingConfig
from generators.unimat.dense import DenseModelConfig
from generators.unimat.generator import UniMatConfig, UniMatGenerator
from generators.unimat.model import TokenModelConfig
from generators.unimat.representation import DenseLayout
from generators.unimat.train import UniMatTrainConfig

ROCK_SALT, CAESIUM_CHLORIDE = 225, 221


def polymorphs() -> list[LabelledCrystal]:
    """Sodium chloride in two types, as many of each, at several lattice constants."""
    fcc = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    ends = [[0, 0, 0], [0.5, 0.5, 0.5]]
    cells = [a * fcc for a in np.linspace(5.5, 5.8, 6)] + [a * np.eye(3) for a in np.linspace(3.4, 3.6, 6)]
    return [LabelledCrystal(Crystal(cell, ends, [11, 17]), {}, f"c{i}") for i, cell in enumerate(cells)]


def test_an_unknown_property_is_not_zero_and_a_space_group_is_no_number():
    torch.manual_seed(0)
    embedding = PropertyEmbedding(("band_gap", "space_group"), 5)
    torch.nn.init.normal_(embedding.space_group.weight[1:])
    nan = torch.nan
    rows = embedding(torch.tensor([[0.0, nan], [nan, nan], [nan, 1.0], [nan, 2.0], [nan, 3.0]]))
    assert not torch.allclose(rows[0], rows[1])
    steps = rows[3] - rows[2], rows[4] - rows[3]
    assert not torch.allclose(*steps)
    torch.testing.assert_close(rows[2] - rows[1], embedding.space_group.weight[1])


def test_every_combination_of_properties_is_shown():
    shown = torch.isfinite(hide(torch.zeros(4000, 2), 0.2, torch.Generator().manual_seed(0))).double()
    both = (shown.prod(1).mean(), (1 - shown).prod(1).mean())
    torch.testing.assert_close(
        torch.stack([*shown.mean(0), *both]), torch.tensor([0.4, 0.4, 0.2, 0.4]).double(), atol=0.03, rtol=0
    )


TRAINING = TrainingConfig(steps=250, batch_size=16, micro_batches=1, warmup_steps=10, learning_rate=3e-3, ema_decay=0.9)
VARIANTS = {
    "token": UniMatTrainConfig(
        variant="token",
        token=TokenModelConfig(width=32, pair_width=16, layers=2, frequencies=4, property_dropout=0.0),
        training=TRAINING,
    ),
    "unet3d": UniMatTrainConfig(
        variant="unet3d",
        unet3d=DenseModelConfig(
            DenseLayout(1, periods=(3,), groups=(1, 17)), width=16, multipliers=(1,), blocks=1, head_dim=16,
            element_set_fraction=0.0, unconditional_fraction=0.0,
        ),
        training=TRAINING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_guidance_by_space_group_chooses_the_polymorph(variant: str, tmp_path: Path):
    crystals = polymorphs()
    trained = UniMatGenerator.train(crystals, crystals, config=VARIANTS[variant], folder=tmp_path, metadata={})
    generator = UniMatGenerator(UniMatConfig(checkpoint=Path(trained.path), steps=30, device="cpu"))

    def share_of_rock_salt(**guidance: float) -> float:
        target = Target(24, composition={"Na": 1, "Cl": 1}, guidance=guidance)
        angles = []
        for sample in generator.sample([target], seed=0):
            a, b, c = sample.crystal.lattice
            cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in ((a, b), (b, c), (a, c))]
            angles.append(np.degrees(np.arccos(np.mean(cosines))))
        return float(np.mean(np.array(angles) < 75))

    assert {spacegroup(item.crystal)[0] for item in crystals} == {ROCK_SALT, CAESIUM_CHLORIDE}
    assert 0.1 < share_of_rock_salt() < 0.9
    assert share_of_rock_salt(space_group=ROCK_SALT) > 0.9
    assert share_of_rock_salt(space_group=CAESIUM_CHLORIDE) < 0.1
    for wrong in (0.0, 231.0, 12.5):
        with pytest.raises(InvalidInputError, match="1 to 230"):
            generator.sample([Target(1, composition={"Na": 1}, guidance={"space_group": wrong})], seed=0)
