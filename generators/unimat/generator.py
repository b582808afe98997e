"""The ``unimat`` generator: samples exact compositions and fine-tunes on what turned out stable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.protocols import PluginConfig
from discovery.types import Checkpoint, Failure, FailureKind, LabelledCrystal, Sample, Target
from generators import checkpoints
from generators.data import CrystalArrays, shuffled_batches
from generators.training import TrainingConfig, train
from generators.unimat.model import TokenModel, TokenModelConfig

SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "mp20-bt-token.safetensors"
_DATA_FIELDS = ("lattice", "n_atoms", "frac", "numbers", "properties")


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


class UniMatGenerator:
    """Composition-conditioned diffusion on the UniMat representation (arXiv 2311.09235), token variant.

    Exact compositions are guaranteed: the occupied slots are given and only geometry is sampled. A target with an
    element set takes the counts of a random training crystal with as many elements, and random elements for them.
    """

    Config = UniMatConfig

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
        tensors, self._metadata = checkpoints.load(path)
        if self._metadata.get("kind") != "unimat-token":
            raise InvalidInputError(f"checkpoint {path} is of kind {self._metadata.get('kind')!r}, not 'unimat-token'")
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "replay": {}, "held_out": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        config = TokenModelConfig.from_dict(self._metadata["model"])
        self._model = TokenModel(config)
        self._model.load_state_dict(groups["model"])
        self._model.to(self._device).eval()
        self._replay = _arrays(groups["replay"], config.property_names)
        self._held_out = _arrays(groups["held_out"], config.property_names)

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target."""
        samples: list[Sample] = []
        for index, target in enumerate(targets):
            rng = np.random.default_rng([seed, index])
            unknown = set(target.guidance) - set(self._model.config.property_names)
            if unknown:
                raise InvalidInputError(
                    f"guidance on {', '.join(sorted(unknown))} is unknown to this checkpoint; "
                    f"it knows {', '.join(self._model.config.property_names) or 'none'}"
                )
            problem = self._problem(target)
            if problem is not None:
                failure = Failure(FailureKind.INVALID_INPUT, f"unimat: {problem}")
                samples += [Sample(index, None, failure)] * target.n_samples
                continue
            for first in range(0, target.n_samples, self.config.batch_size):
                count = min(self.config.batch_size, target.n_samples - first)
                samples += self._sample_batch(index, target, count, rng)
        return samples

    def _problem(self, target: Target) -> str | None:
        """Return why `target` cannot be sampled, or None."""
        from pymatgen.core import Element

        for symbol in target.composition or target.elements or ():
            if not Element.is_valid_symbol(symbol):
                return f"{symbol} is not an element"
        size = sum((target.composition or {}).values())
        if size > self.config.max_atoms:
            return f"{target.label} has {size} atoms, more than generator.max_atoms = {self.config.max_atoms}"
        return None

    def _sample_batch(self, index: int, target: Target, count: int, rng: np.random.Generator) -> list[Sample]:
        start = time.perf_counter()
        atoms = [self._atoms(target, rng) for _ in range(count)]
        numbers = np.zeros((count, max(map(len, atoms))), dtype=np.int64)
        for row, z in zip(numbers, atoms, strict=True):
            row[: len(z)] = z
        frac, lattice = self._model.sample(
            numbers,
            generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
            steps=self.config.steps,
            gamma=self.config.gamma,
            deterministic=self.config.sampler == "deterministic",
            properties=dict(target.guidance) or None,
            guidance_weight=self.config.guidance_weight,
        )
        seconds = (time.perf_counter() - start) / count
        samples = []
        for z, x, vectors in zip(atoms, frac, lattice, strict=True):
            try:
                samples.append(Sample(index, Crystal(vectors, x[: len(z)], z), seconds=seconds))
            except InvalidInputError as error:
                failure = Failure(FailureKind.UNPHYSICAL, f"unimat: {error}")
                samples.append(Sample(index, None, failure, seconds))
        return samples

    def _atoms(self, target: Target, rng: np.random.Generator) -> np.ndarray:
        from pymatgen.core import Element

        if target.composition is not None:
            counts = target.composition
        else:
            elements = rng.permutation(target.elements or ())
            templates = [c for c in self._metadata["count_templates"] if len(c) <= len(elements)]
            if not templates:
                templates = [[1] * len(elements)]
            template = templates[rng.integers(len(templates))]
            counts = {str(element): int(n) for element, n in zip(elements, template, strict=False)}
        return np.repeat([Element(symbol).Z for symbol in counts], list(counts.values()))

    def _loss(self, data: CrystalArrays) -> float:
        return sum(validation_loss(self._model, data))

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Fine-tune on `crystals` mixed with replayed training data, through DeepSpeed.

        The parent's weights stay in use, and ``metrics["accepted"]`` is 0, if the held-out loss rises by more than
        ``learn.max_loss_increase``. Returns None if there is nothing to learn from.
        """
        settings = self.config.learn
        if not crystals or settings.steps == 0:
            return None
        start = time.perf_counter()
        names = self._model.config.property_names
        new = CrystalArrays.from_crystals(
            [LabelledCrystal(canonical(item.crystal), item.properties, item.id) for item in crystals], names
        )
        ratio = settings.new_fraction / (1 - settings.new_fraction + 1e-9)
        copies = max(1, round(ratio * len(self._replay) / len(new)))
        data = self._replay.concatenate(new.take(np.tile(np.arange(len(new)), copies)))
        before_new, before = self._loss(new), self._loss(self._held_out)
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
        after_new, after = self._loss(new), self._loss(self._held_out)
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
        trained_on = tuple(item.id for item in crystals)
        parent_hash = self._checkpoint.sha256
        self._metadata = {**self._metadata, "parent": parent_hash, "trained_on": list(trained_on), "metrics": metrics}
        path = folder / "unimat-token.safetensors"
        digest = save_token_checkpoint(path, self._model, self._replay, self._held_out, self._metadata)
        self._checkpoint = Checkpoint(str(path), digest, parent_hash, trained_on, metrics)
        return self._checkpoint


def _arrays(tensors: dict[str, Tensor], property_names: tuple[str, ...]) -> CrystalArrays:
    fields = {name: tensors[name].numpy() for name in _DATA_FIELDS}
    return CrystalArrays(
        fields["lattice"].astype(np.float64),
        fields["n_atoms"].astype(np.int64),
        fields["frac"].astype(np.float64),
        fields["numbers"].astype(np.int64),
        fields["properties"].astype(np.float64),
        property_names,
    )


def save_token_checkpoint(
    path: Path, model: TokenModel, replay: CrystalArrays, held_out: CrystalArrays, metadata: dict[str, Any]
) -> str:
    """Write a checkpoint of the token variant and return its SHA-256.

    It holds the weights, the training crystals to replay in fine-tuning and the held-out crystals that guard it.
    """
    tensors = {f"model.{name}": tensor.float() for name, tensor in model.state_dict().items()}
    dtypes = {"lattice": "f4", "n_atoms": "u1", "frac": "f4", "numbers": "u1", "properties": "f4"}
    for group, data in (("replay", replay), ("held_out", held_out)):
        for name in _DATA_FIELDS:
            tensors[f"{group}.{name}"] = torch.from_numpy(getattr(data, name).astype(dtypes[name]))
    return checkpoints.save(path, tensors, {**metadata, "kind": "unimat-token", "model": asdict(model.config)})


def count_templates(data: CrystalArrays) -> list[list[int]]:
    """Return the atom counts per element of every crystal, largest count first."""
    starts = np.concatenate([[0], np.cumsum(data.n_atoms)])
    return [
        sorted(np.unique(data.numbers[a:b], return_counts=True)[1].tolist(), reverse=True) for a, b in pairwise(starts)
    ]


@torch.no_grad()
def validation_loss(model: TokenModel, data: CrystalArrays, *, repeats: int = 4) -> tuple[float, float]:
    """Return the mean coordinate and lattice losses on `data`, always with the same noise."""
    order = np.argsort(data.n_atoms, kind="stable")
    generator = torch.Generator().manual_seed(0)
    totals = np.zeros(2)
    for _ in range(repeats):
        for first in range(0, len(data), 64):
            chosen = order[first : first + 64]
            losses = model(model.batch(data.take(chosen)), generator)
            totals += np.array([float(loss) for loss in losses]) * len(chosen)
    frac_loss, lattice_loss = (totals / (repeats * len(data))).tolist()
    return frac_loss, lattice_loss
