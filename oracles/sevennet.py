"""SevenNet: equivariant force fields of the ``sevenn`` package; weights of two come with it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from discovery.checkpoints import load, save, sha256
from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from discovery.types import EnergyScale
from oracles.force_field import ForceFieldOracle
from oracles.neighbors import bonds
from oracles.relax import Answer, BatchConfig, split_answers

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLISHED = {"7net-0": "SEVENNET_0_11Jul2024", "7net-l3i5": "SEVENNET_l3i5"}
"""Models that come with the package, and what it calls their files; trained on the uncorrected energies of MPtrj."""

RELEASES = "https://github.com/MDIL-SNU/SevenNet/releases"
WEIGHTS_FILE = "model.safetensors"
TYPE_MAP = "_type_map"
"""Where the architecture has the index of each atomic number, which JSON cannot have as keys."""


class SevenNetOracle(ForceFieldOracle):
    """SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857, 2024).

    Checkpoints of the package are read without running any code that may be in them.
    """

    class Config(BatchConfig):
        """Settings of the SevenNet oracle."""

        model: str = Field(
            "7net-0",
            description=f"{' or '.join(PUBLISHED)}, which come with sevenn; a checkpoint file of SevenNet (.pth); or a "
            "file that `discovery finetune` has written (.safetensors).",
        )
        modal: str | None = Field(
            None, description="Data set to imitate, of a model trained on several, for example mpa or omat24."
        )
        functional: str | None = Field(
            None, description="Functional of the data that the model was trained on; needed for .pth files alone."
        )
        corrections: str | None = Field(
            None, description="Correction scheme contained in that data; unset takes what the model says, or none."
        )

    def __init__(self, config: Config) -> None:
        path = _find(config.model)
        if path.suffix == ".safetensors":
            architecture, weights, labels = _read_fine_tuned(path)
        else:
            architecture, weights = _read_checkpoint(path)
            labels = {"functional": "PBE+U"} if config.model in PUBLISHED else {}
        labels |= {
            name: given for name in ("functional", "corrections") if (given := getattr(config, name)) is not None
        }
        if "functional" not in labels:
            raise InvalidInputError(f"{path} does not say what it was trained on; set `functional`, for example to PBE")
        force_field = SevenNetForceField(architecture, weights, config.modal)
        scale = EnergyScale(
            code="sevennet",
            version=version("sevenn"),
            functional=labels["functional"],
            potentials=sha256(path),
            settings=f"modal {config.modal}" if config.modal else "",
            corrections=labels.get("corrections", ""),
        )
        super().__init__(config, force_field, force_field.elements, scale)

    def _save(self, folder: Path, metadata: Mapping[str, Any], learned: EnergyScale) -> tuple[Path, str]:
        force_field: Any = self._force_field
        path = folder / WEIGHTS_FILE
        own = {
            "architecture": force_field.architecture | {TYPE_MAP: list(force_field.architecture[TYPE_MAP].items())},
            "functional": learned.functional,
            "corrections": learned.corrections,
        }
        return path, save(path, force_field.module.state_dict(), {**metadata, **own})


class SevenNetForceField:
    """A SevenNet model as a :class:`~oracles.relax.ForceField`.

    Parameters
    ----------
    architecture
        Settings of the model, as ``sevenn.model_build`` takes them.
    weights
        Its state.
    modal
        Which of several training sets it imitates.

    Raises
    ------
    InvalidInputError
        If the weights are of another architecture, or `modal` is none of the model's.
    """

    def __init__(self, architecture: dict[str, Any], weights: Mapping[str, Tensor], modal: str | None) -> None:
        from sevenn.model_build import build_E3_equivariant_model
        from sevenn.scripts.backward_compatibility import patch_state_dict_if_old

        model: Any = build_E3_equivariant_model(dict(architecture))
        try:
            model.load_state_dict(patch_state_dict_if_old(weights, architecture, model))
        except (RuntimeError, KeyError) as error:
            raise InvalidInputError(
                f"the weights are not those of the model that the file describes: {error}"
            ) from error
        modals = model.modal_map or {}
        if modal not in (modals or {None}):
            choice = f"one of {', '.join(modals)}" if modals else "unset, because the model has only one"
            raise InvalidInputError(f"`modal` is {modal!r} and must be {choice}")
        model.eval_modal_map = False
        self.architecture = {
            name: value
            for name, value in architecture.items()
            if isinstance(value, str | float | int | list | dict | None)
        } | {"version": version("sevenn")}
        self.elements = frozenset(model.type_map)
        self._modal = modals.get(modal)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model = model.requires_grad_(False).eval()

    @property
    def module(self) -> nn.Module:
        """The model."""
        module: nn.Module = self._model
        return module

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The weights that SevenNet itself trains."""
        return self._trainable

    def shift(self, energies: Mapping[int, float]) -> None:
        """Add an energy (eV) per atom of each element, given by atomic number."""
        rescale = self._model.rescale_atomic_energy
        for number, energy in energies.items():
            rescale.shift.data[..., self._model.type_map[number]] += energy

    def compute(self, crystals: Sequence[Crystal]) -> list[Answer]:
        """Return energy, forces and stress of each crystal."""
        return split_answers(crystals, *self.predict(crystals))

    def predict(self, crystals: Sequence[Crystal]) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (eV, (B,)), forces (eV/Å, (N, 3)) and stresses (eV/Å³, (B, 3, 3)) of crystals.

        In training mode they can be differentiated by the model's parameters.
        """
        import sevenn._keys as key
        import torch

        found = [bonds(crystal, self._model.cutoff) for crystal in crystals]
        sizes = np.array([len(crystal) for crystal in crystals])
        offsets = np.cumsum(sizes) - sizes
        first = np.concatenate([bond.first + offset for bond, offset in zip(found, offsets, strict=True)])
        second = np.concatenate([bond.second + offset for bond, offset in zip(found, offsets, strict=True)])
        vectors = np.concatenate([bond.vector for bond in found])
        numbers = torch.from_numpy(np.concatenate([crystal.atomic_numbers for crystal in crystals]))
        data = {
            key.ATOMIC_NUMBERS: numbers,
            key.NODE_FEATURE: numbers,
            key.BATCH: torch.from_numpy(np.repeat(np.arange(len(crystals)), sizes)),
            key.NUM_ATOMS: torch.from_numpy(sizes),
            key.CELL_VOLUME: torch.tensor([crystal.volume for crystal in crystals], dtype=torch.float32),
            key.EDGE_IDX: torch.from_numpy(np.stack([np.append(first, second), np.append(second, first)])),
            key.EDGE_VEC: torch.from_numpy(np.concatenate([vectors, -vectors])).float(),
        }
        if self._modal is not None:
            data[key.MODAL_TYPE] = torch.full((len(crystals),), self._modal)
        output = self._model(data)
        stresses = -output[key.PRED_STRESS][:, [[0, 3, 5], [3, 1, 4], [5, 4, 2]]]
        return output[key.PRED_TOTAL_ENERGY], output[key.PRED_FORCE], stresses


def _find(model: str) -> Path:
    """Return the file of a model.

    Raises
    ------
    MissingDependencyError
        If the package or the file is not there.
    """
    try:
        import sevenn._const as constants
    except ImportError as error:
        message = "SevenNet is not installed; `pip install 'discovery-engine[sevennet]'`"
        raise MissingDependencyError(message) from error
    path = Path(getattr(constants, PUBLISHED[model])) if model in PUBLISHED else Path(model).expanduser()
    if not path.is_file():
        raise MissingDependencyError(
            f"SevenNet model {model!r} is neither {' nor '.join(PUBLISHED)} nor a file; download a checkpoint from "
            f"{RELEASES} and set `model` to its path"
        )
    return path


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read architecture and weights of a checkpoint file of sevenn; of Python objects, it may hold arrays alone."""
    import torch
    from numpy._core.multiarray import _reconstruct
    from sevenn.checkpoint import _config_cp_routine

    arrays: list[Any] = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (_reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    ]
    try:
        with torch.serialization.safe_globals(arrays):
            state = torch.load(path, map_location="cpu", weights_only=True)
        return _config_cp_routine(state["config"]), state["model_state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{path} is not a checkpoint of SevenNet: {error}") from error


def _read_fine_tuned(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Read architecture, weights and labels of a file that :meth:`SevenNetOracle._save` has written."""
    weights, metadata = load(path)
    try:
        architecture = metadata["architecture"]
        labels = {name: metadata[name] for name in ("functional", "corrections")}
        return architecture | {TYPE_MAP: dict(architecture[TYPE_MAP])}, weights, labels
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"{path} holds no weights of SevenNet: {error} is missing") from error
