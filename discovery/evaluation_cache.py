"""Evaluations kept across campaigns by content, so that a reference phase is computed once per energy scale."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.files import cache_folder, write_atomically
from discovery.types import EnergyScale, Evaluation

if TYPE_CHECKING:
    from discovery.config import OracleChoice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationCache:
    """The evaluations of one oracle; one JSON file each, so that campaigns at work side by side share them.

    An evaluation is found again for the same crystal, energy scale and options of the oracle. Failures are not kept:
    their cause may be gone. A cache that cannot be read or written costs time, never a campaign.

    Parameters
    ----------
    oracle
        The oracle and its options.
    energy_scale
        Its energy scale.
    folder
        Where the files are.
    """

    oracle: OracleChoice
    energy_scale: EnergyScale
    folder: Path

    @classmethod
    def of(cls, oracle: OracleChoice, energy_scale: EnergyScale) -> EvaluationCache:
        """Return the cache in the user's cache folder."""
        return cls(oracle, energy_scale, cache_folder() / "evaluations")

    def get(self, crystal: Crystal) -> Evaluation | None:
        """Return the evaluation of `crystal`, at no cost; what it has cost is in its details."""
        try:
            data = json.loads(self._path(crystal).read_text(encoding="utf-8"))
            evaluation = Evaluation.from_dict(data["evaluation"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, InvalidInputError) as error:
            logger.warning("%s cannot be used and will be replaced: %s", self._path(crystal), error)
            return None
        if evaluation.energy_scale != self.energy_scale:
            return None
        details = {**evaluation.details, "cached_seconds": evaluation.seconds}
        return replace(evaluation, seconds=0.0, details=details)

    def put(self, crystal: Crystal, evaluation: Evaluation) -> None:
        """Keep `evaluation` unless it failed or came from here."""
        if not evaluation.ok or "cached_seconds" in evaluation.details:
            return
        path = self._path(crystal)
        data = {
            "format": "discovery.cached_evaluation/1",
            "oracle": self.oracle.model_dump(mode="json"),
            "given": crystal.to_dict(),
            "evaluation": evaluation.to_dict(),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(data))
        except OSError as error:
            logger.warning("%s cannot be written: %s; set DISCOVERY_CACHE to another folder", path, error.strerror)

    def _path(self, crystal: Crystal) -> Path:
        key = {
            "crystal": crystal.content_hash,
            "energy_scale": asdict(self.energy_scale),
            "oracle": self.oracle.model_dump(mode="json"),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"
