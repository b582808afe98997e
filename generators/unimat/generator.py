"""The ``unimat`` generator: samples exact compositions and fine-tunes on what turned out stable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from discovery import checkpoints
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.matching import spacegroup
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, Failure, FailureKind, LabelledCrystal, Sample, Target
from generators.conditions import N_SPACE_GROUPS, SPACE_GROUP
from generators.data import CrystalArrays, shuffled_batches
from generators.diffusion import Sampler
from generators.targets import check_target
from generators.training import TrainingConfig, train
from generators.unimat.dense import DenseModel
from generators.unimat.train import UniMatTrainConfig, train_model, validation_loss
from generators.unimat.weights import load_checkpoint, save_checkpoint

SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "mp20-bt-token.safetensors"


class FineTuneConfig(PluginConfig):
    """How a campaign's results change the weights."""

    steps: int = Field(150, ge=0, description="Optimiser steps of one fine-tuning; 0 never learns.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    batch_size: int = Field(64, ge=2, description="Crystals per step.")
    new_fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of new crystals in the training set; the rest is replayed from the old data.",
    )
    max_loss_increase: float = Field(
        0.05, ge=0, description="The parent is kept if the held-out loss rises by more than this fraction."
    )
    zero_stage: int = Field(0, ge=0, le=2, description="DeepSpeed's ZeRO stage.")


class UniMatConfig(PluginConfig):
    """Settings of the ``unimat`` generator."""

    checkpoint: Path | None = Field(
        None, description="Weights (.safetensors); none takes the checkpoint that comes with the package."
    )
    steps: int = Field(100, ge=1, description="Network evaluations per crystal.")
    sampler: Literal["ancestral", "deterministic"] = Field("ancestral", description="Kind of step.")
    gamma: float = Field(0.1, ge=0, le=1, description="Log-variance interpolation γ of the ancestral step.")
    anti_annealing: float = Field(
        0.0,
        ge=0,
        description="Slope s' of inference anti-annealing: more gives likelier and less diverse crystals.",
    )
    guidance_weight: float = Field(1.0, ge=0, description="ω of UniMat's equation 2, used if a target has guidance.")
    batch_size: int = Field(128, ge=1, description="Crystals sampled at once.")
    max_atoms: int = Field(64, ge=1, description="Largest cell that is sampled; larger targets fail.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes a GPU if there is one."
    )
    learn: FineTuneConfig = Field(default_factory=FineTuneConfig, description="Fine-tuning on new crystals.")


def canonical(crystal: Crystal) -> Crystal:
    """Return the primitive cell, Niggli-reduced, which is the form of cells the model is trained on."""
    structure = crystal.to_structure().get_primitive_structure().get_reduced_structure("niggli")
    return Crystal.from_structure(structure)


def prepared(item: LabelledCrystal) -> LabelledCrystal:
    """Return what the model is trained on: the canonical cell, with the number of its space group as a property."""
    crystal = canonical(item.crystal)
    try:
        number, _ = spacegroup(crystal)
    except InvalidInputError:
        return replace(item, crystal=crystal)
    return replace(item, crystal=crystal, properties={**item.properties, SPACE_GROUP: float(number)})


class UniMatGenerator:
    """Diffusion on the UniMat representation (arXiv 2311.09235); the checkpoint says which variant.

    Exact compositions are guaranteed: the occupied slots are given and only geometry is sampled. For a target with an
    element set, the dense variant (``unet3d``) samples which atoms there are; the token variant takes the composition
    of a random training crystal and exchanges its elements for those of the set, within a group of the periodic table
    where it can.
    """

    Config = UniMatConfig
    TrainConfig = UniMatTrainConfig

    def __init__(self, config: UniMatConfig) -> None:
        self.config = config
        cuda = torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise InvalidInputError("generator.device is cuda, but torch sees no GPU; use device=cpu or device=auto")
        self._device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
        path = config.checkpoint or SHIPPED_CHECKPOINT
        self._read(path)
        self._checkpoint = Checkpoint(
            str(path), checkpoints.sha256(path), self._metadata.get("parent"), tuple(self._metadata["trained_on"])
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights in use."""
        return self._checkpoint

    def load(self, checkpoint: Checkpoint) -> None:
        """Use the weights of `checkpoint` from now on.

        Raises
        ------
        InvalidInputError
            If the file is not what `checkpoint` says.
        """
        path = Path(checkpoint.path)
        if path.is_file() and checkpoints.sha256(path) != checkpoint.sha256:
            raise InvalidInputError(
                f"checkpoint {path} has changed since it was recorded; restore it or start a new run"
            )
        self._read(path)
        self._checkpoint = checkpoint

    def _read(self, path: Path) -> None:
        self._model, self._replay, self._held_out, self._metadata = load_checkpoint(path)
        self._model.to(self._device).eval()

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target."""
        samples: list[list[Sample]] = [[] for _ in targets]
        pending: dict[frozenset[tuple[str, float]], list[tuple[int, np.ndarray]]] = {}
        for index, target in enumerate(targets):
            self._check_guidance(target.guidance)
            problem = self._problem(target)
            if problem is not None:
                failure = Failure(FailureKind.INVALID_INPUT, f"{problem}")
                samples[index] = [Sample(index, None, failure)] * target.n_samples
            elif target.elements is not None and isinstance(self._model, DenseModel):
                samples[index] = self._sample_elements(self._model, index, target, seed)
            else:
                rng = np.random.default_rng([seed, index])
                jobs = pending.setdefault(frozenset(target.guidance.items()), [])
                jobs += [(index, atoms) for atoms in self._atoms(target, rng)]
        for number, (guidance, jobs) in enumerate(pending.items()):
            generator = _torch_generator([seed, number])
            jobs.sort(key=lambda job: len(job[1]))
            for first in range(0, len(jobs), self.config.batch_size):
                batch = jobs[first : first + self.config.batch_size]
                for sample in self._sample_batch(batch, dict(guidance), generator):
                    samples[sample.target].append(sample)
        return [sample for of_target in samples for sample in of_target]

    def _check_guidance(self, guidance: Mapping[str, float]) -> None:
        unknown = set(guidance) - set(self._model.property_names)
        if unknown:
            raise InvalidInputError(
                f"guidance on {', '.join(sorted(unknown))} is unknown to this checkpoint; "
                f"it knows {', '.join(self._model.property_names) or 'none'}"
            )
        if SPACE_GROUP in guidance and guidance[SPACE_GROUP] not in range(1, N_SPACE_GROUPS + 1):
            raise InvalidInputError(
                f"guidance on {SPACE_GROUP} = {guidance[SPACE_GROUP]:g}: expected the number of a space group, "
                f"1 to {N_SPACE_GROUPS}"
            )

    def _problem(self, target: Target) -> str | None:
        """Return why `target` cannot be sampled, or None."""
        try:
            check_target(target, self.config.max_atoms)
        except InvalidInputError as error:
            return str(error)
        if target.composition is not None:
            return self._model.misfit(_numbers(target.composition))
        elements = target.elements or ()
        if isinstance(self._model, DenseModel):
            misfits = [self._model.misfit(_numbers({symbol: 1})) for symbol in elements]
            return None if None in misfits else misfits[0]
        if any(len(template) <= len(elements) for template in self._templates()):
            return None
        return (
            f"no crystal that the checkpoint was trained on has {len(elements)} elements or fewer and at most "
            f"{self.config.max_atoms} atoms; name more elements or set generator.max_atoms"
        )

    def _options(self, guidance: Mapping[str, float]) -> dict[str, Any]:
        return {
            "sampler": Sampler(
                self.config.steps,
                self.config.gamma,
                self.config.sampler == "deterministic",
                self.config.anti_annealing,
            ),
            "properties": guidance or None,
            "guidance_weight": self.config.guidance_weight,
        }

    def _sample_batch(
        self, jobs: Sequence[tuple[int, np.ndarray]], guidance: Mapping[str, float], generator: torch.Generator
    ) -> list[Sample]:
        """Sample crystals of given atoms; a job is the index of its target and atomic numbers."""
        start = time.perf_counter()
        numbers = np.zeros((len(jobs), max(len(atoms) for _, atoms in jobs)), dtype=np.int64)
        for row, (_, atoms) in zip(numbers, jobs, strict=True):
            row[: len(atoms)] = atoms
        frac, lattice = self._model.sample(numbers, generator=generator, **self._options(guidance))
        seconds = (time.perf_counter() - start) / len(jobs)
        return [
            _sample(index, vectors, x[: len(atoms)], atoms, seconds)
            for (index, atoms), x, vectors in zip(jobs, frac, lattice, strict=True)
        ]

    def _sample_elements(self, model: DenseModel, index: int, target: Target, seed: int) -> list[Sample]:
        """Sample crystals of any number of atoms of the target's elements; all elements together restrict nothing."""
        elements = set(_numbers(dict.fromkeys(target.elements or (), 1)).tolist())
        known = set(model.config.layout.atomic_numbers.ravel().tolist()) - {0}
        generator = _torch_generator([seed, index])
        samples: list[Sample] = []
        for first in range(0, target.n_samples, self.config.batch_size):
            start = time.perf_counter()
            count = min(self.config.batch_size, target.n_samples - first)
            chosen = None if elements >= known else sorted(elements & known)
            sampled = model.sample_elements(chosen, count, generator=generator, **self._options(target.guidance))
            seconds = (time.perf_counter() - start) / count
            for position in range(count):
                one = sampled.take([position])
                samples.append(_sample(index, one.lattice[0], one.frac, one.numbers, seconds))
        return samples

    def _templates(self) -> list[dict[int, int]]:
        """Return the compositions of the training crystals in the checkpoint, atomic number → atoms."""
        numbers, _ = self._replay.padded()
        fitting = numbers[self._replay.n_atoms <= self.config.max_atoms]
        return [dict(Counter(row[row > 0].tolist())) for row in fitting]

    def _atoms(self, target: Target, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the atomic numbers of each sample; of a set of elements, those that were seen in training if any."""
        if target.composition is not None:
            return [_numbers(target.composition)] * target.n_samples
        wanted = _numbers(dict.fromkeys(target.elements or (), 1)).tolist()
        templates = self._templates()
        seen = {number for template in templates for number in template}
        for allowed in ([number for number in wanted if number in seen], wanted):
            fitting = [template for template in templates if len(template) <= len(allowed)]
            if fitting:
                return [_exchanged(fitting[rng.integers(len(fitting))], allowed, rng) for _ in range(target.n_samples)]
        raise AssertionError("a target without fitting template is refused before")

    @classmethod
    def train(
        cls,
        crystals: Sequence[LabelledCrystal],
        validation: Sequence[LabelledCrystal],
        *,
        config: UniMatTrainConfig,
        folder: Path,
        metadata: Mapping[str, Any],
        on_validation: Callable[[int, float], None] | None = None,
    ) -> Checkpoint:
        """Train new weights on `crystals`, going on with what `folder` already holds."""
        return train_model(
            [prepared(item) for item in crystals],
            [prepared(item) for item in validation],
            config,
            folder,
            metadata,
            on_validation,
        )

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Fine-tune on `crystals` mixed with replayed training data, through DeepSpeed.

        The parent's weights stay in use, and ``metrics["accepted"]`` is 0, if the held-out loss rises by more than
        ``learn.max_loss_increase``. Returns None if there is nothing to learn from;
        crystals that do not fit the dense variant's layout are left out.
        """
        settings = self.config.learn
        if not crystals or settings.steps == 0:
            return None
        start = time.perf_counter()
        ready = [prepared(item) for item in crystals]
        fitting = [item for item in ready if self._model.misfit(item.crystal.atomic_numbers) is None]
        if not fitting:
            return None
        new = CrystalArrays.from_crystals(fitting, self._model.property_names)
        ratio = settings.new_fraction / (1 - settings.new_fraction + 1e-9)
        copies = max(1, round(ratio * len(self._replay) / len(new)))
        data = self._replay.concatenate(new.take(np.tile(np.arange(len(new)), copies)))
        before_new, before = (sum(validation_loss(self._model, part)) for part in (new, self._held_out))
        parent = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        training = TrainingConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            micro_batches=2,
            learning_rate=settings.learning_rate,
            warmup_steps=min(20, settings.steps),
            ema_decay=0.98,
            zero_stage=settings.zero_stage,
            seed=seed,
        )
        batches = (
            [self._model.batch(part) for part in parts]
            for parts in shuffled_batches(data, training.batch_size, training.micro_batches, seed=seed)
        )
        self._model.train()
        weights = train(self._model, batches, training)
        self._model.load_state_dict(weights)
        self._model.eval()
        after_new, after = (sum(validation_loss(self._model, part)) for part in (new, self._held_out))
        accepted = bool(np.isfinite(after) and after <= before * (1 + settings.max_loss_increase))
        metrics = {
            "held_out_loss_before": before,
            "held_out_loss_after": after,
            "new_loss_before": before_new,
            "new_loss_after": after_new,
            "steps": float(settings.steps),
            "seconds": time.perf_counter() - start,
            "accepted": float(accepted),
        }
        if not accepted:
            self._model.load_state_dict(parent)
            return replace(self._checkpoint, metrics=metrics)
        self._replay = self._replay.concatenate(new)
        trained_on = tuple(item.id for item in fitting)
        parent_hash = self._checkpoint.sha256
        self._metadata = {**self._metadata, "parent": parent_hash, "trained_on": list(trained_on), "metrics": metrics}
        path = folder / f"{self._model.kind}.safetensors"
        digest = save_checkpoint(path, self._model, self._replay, self._held_out, self._metadata)
        self._checkpoint = Checkpoint(str(path), digest, parent_hash, trained_on, metrics)
        return self._checkpoint


def _numbers(counts: Mapping[str, int]) -> np.ndarray:
    """Return atomic numbers, element after element, of a composition such as ``{"Mg": 2, "Si": 1}``."""
    from pymatgen.core import Element

    return np.repeat([Element(symbol).Z for symbol in counts], list(counts.values()))


def _exchanged(template: Mapping[int, int], allowed: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return atomic numbers of a composition whose elements are replaced by `allowed` ones, of their group if any."""
    composition: dict[int, int] = {}
    for own, count in template.items():
        left = [number for number in allowed if number not in composition]
        alike = [number for number in left if _group(number) == _group(own)]
        composition[int(rng.choice(alike or left))] = count
    return np.repeat(list(composition), list(composition.values()))


@cache
def _group(number: int) -> int:
    """Return the group of an element, 1–18; that of lanthanides and actinides is 3."""
    from pymatgen.core import Element

    return int(Element.from_Z(number).group)


def _torch_generator(seed: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))


def _sample(target: int, lattice: np.ndarray, frac: np.ndarray, numbers: np.ndarray, seconds: float) -> Sample:
    if len(numbers) == 0:
        return Sample(target, None, Failure(FailureKind.UNPHYSICAL, "unimat: no slot came out occupied"), seconds)
    try:
        return Sample(target, Crystal(lattice, frac, numbers), seconds=seconds)
    except InvalidInputError as error:
        return Sample(target, None, Failure(FailureKind.UNPHYSICAL, f"unimat: {error}"), seconds)
