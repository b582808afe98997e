"""Force fields of the matgl family (TensorNet, M3GNet, …) from a folder or a local Hugging Face cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale
from oracles.force_field import ForceFieldOracle
from oracles.relax import Answer, BatchConfig, split_answers

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = ("model.pt", "state.pt", "model.json")
EV_PER_CUBIC_ANGSTROM = 160.21766208
"""GPa, as matgl has it."""


class MatGLOracle(ForceFieldOracle):
    """Any interatomic potential that matgl saves: a folder with ``model.pt``, ``state.pt`` and ``model.json``."""

    class Config(BatchConfig):
        """Settings of the matgl oracle."""

        model: str = Field(
            "TensorNet-MatPES-PBE-v2025.1-PES",
            description="Folder with the model's files, or the name of a model in the local Hugging Face cache "
            "(`name` of the owner `materialyze`, or `owner/name`).",
        )
        functional: str = Field("PBE", description="Functional of the data the model was trained on.")
        corrections: str = Field("", description="Correction scheme contained in that data; empty for none.")

    def __init__(self, config: Config) -> None:
        files = _model_files(config.model)

        from ase.data import atomic_numbers
        from matgl.utils.io import load_model

        try:
            potential = load_model(files["state.pt"].parent)
        except (RuntimeError, ValueError) as error:
            raise MissingDependencyError(
                f"matgl model {files['state.pt'].parent} cannot be loaded: {error.__cause__ or error}; "
                "download it again or convert it to the installed matgl version"
            ) from error
        scale = EnergyScale(
            code="matgl",
            version=version("matgl"),
            functional=config.functional,
            potentials=_digest(files),
            corrections=config.corrections,
        )
        supported = frozenset(atomic_numbers[symbol] for symbol in potential.model.element_types)
        super().__init__(config, MatGLForceField(potential), supported, scale)

    def _save(self, folder: Path, metadata: Mapping[str, Any], learned: EnergyScale) -> tuple[Path, str]:  # noqa: ARG002
        potential: Any = self._force_field.module
        potential.save(folder, metadata=dict(metadata))
        return folder, _digest({name: folder / name for name in FILES})


class MatGLForceField:
    """A matgl potential as a :class:`~oracles.relax.ForceField`."""

    def __init__(self, potential: Any) -> None:
        from matgl.ext.ase import Atoms2Graph

        self._potential = potential.requires_grad_(False).eval()
        self._converter = Atoms2Graph(potential.model.element_types, potential.model.cutoff)

    @property
    def module(self) -> nn.Module:
        """The potential."""
        module: nn.Module = self._potential
        return module

    @property
    def trainable(self) -> list[nn.Parameter]:
        """All weights."""
        return list(self._potential.parameters())

    def shift(self, energies: Mapping[int, float]) -> None:
        """Add an energy (eV) per atom of each element, given by atomic number."""
        from ase.data import chemical_symbols

        for number, energy in energies.items():
            index = self._potential.model.element_types.index(chemical_symbols[number])
            self._potential.element_refs.property_offset[index] += energy

    def compute(self, crystals: Sequence[Crystal]) -> list[Answer]:
        """Return energy, forces and stress of each crystal."""
        return split_answers(crystals, *self.predict(crystals))

    def predict(self, crystals: Sequence[Crystal]) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (eV, (B,)), forces (eV/Å, (N, 3)) and stresses (eV/Å³, (B, 3, 3)) of crystals.

        In training mode they can be differentiated by the potential's parameters.
        """
        import torch
        from torch_geometric.data import Batch

        graphs, lattices, states = zip(
            *(self._converter.get_graph(crystal.to_atoms()) for crystal in crystals), strict=True
        )
        state = torch.tensor(np.array(states))
        energies, forces, stresses, *_ = self._potential(Batch.from_data_list(list(graphs)), torch.cat(lattices), state)
        stresses = stresses.reshape(-1, 3, 3)
        return energies.reshape(-1), forces, (stresses + stresses.mT) / (2 * EV_PER_CUBIC_ANGSTROM)


def _digest(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name in FILES[:2]:
        digest.update(files[name].read_bytes())
    return digest.hexdigest()


def _model_files(model: str) -> dict[str, Path]:
    """Return the model's files; never asks the network.

    Raises
    ------
    MissingDependencyError
        If the folder lacks a file, or the Hugging Face cache lacks the model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() or folder.is_absolute() or model.startswith("."):
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise MissingDependencyError(
                f"matgl model folder {folder} lacks {', '.join(missing)}; set `model` to a folder that has them"
            )
        return {name: folder / name for name in FILES}

    from huggingface_hub import hf_hub_download

    repository = model if "/" in model else f"materialyze/{model}"
    try:
        return {name: Path(hf_hub_download(repository, name, local_files_only=True)) for name in FILES}
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"matgl model {model!r} is neither a folder nor in the local Hugging Face cache; run `hf download "
            f"{repository}` while there is a network, or set `model` to a folder with {', '.join(FILES)}"
        ) from error
