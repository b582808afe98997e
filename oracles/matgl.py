"""Force fields of the matgl family (TensorNet, M3GNet, …) from a folder or a local Hugging Face cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import Field

from discovery.crystal import Crystal
from discovery.errors import MissingDependencyError
from discovery.types import EnergyScale, Evaluation
from oracles.relax import RelaxConfig, evaluate

FILES = ("model.pt", "state.pt", "model.json")


class MatGLOracle:
    """Any interatomic potential that matgl saves: a folder with ``model.pt``, ``state.pt`` and ``model.json``."""

    class Config(RelaxConfig):
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
        from matgl.ext.ase import PESCalculator
        from matgl.utils.io import load_model

        try:
            potential = load_model(files["state.pt"].parent)
        except (RuntimeError, ValueError) as error:
            raise MissingDependencyError(
                f"matgl model {files['state.pt'].parent} cannot be loaded: {error.__cause__ or error}; "
                "download it again or convert it to the installed matgl version"
            ) from error
        self._config = config
        self._calculator = PESCalculator(potential, stress_unit="eV/A3", use_voigt=True)
        self._supported = frozenset(atomic_numbers[symbol] for symbol in self._calculator.element_types)
        digest = hashlib.sha256()
        for name in FILES[:2]:
            digest.update(files[name].read_bytes())
        self.energy_scale = EnergyScale(
            code="matgl",
            version=version("matgl"),
            functional=config.functional,
            potentials=digest.hexdigest(),
            corrections=config.corrections,
        )

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order."""
        return [
            evaluate(
                crystal,
                self._calculator,
                energy_scale=self.energy_scale,
                supported=self._supported,
                config=self._config,
            )
            for crystal in crystals
        ]


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
