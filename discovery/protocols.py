"""The three protocols that plug-ins implement, and the view that agents see.

A plug-in is a class found by entry point (``discovery.generators``, ``discovery.oracles``, ``discovery.agents``). It
has a nested pydantic model ``Config`` (unknown keys forbidden, every field described) and is constructed as
``cls(config)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from discovery.crystal import Crystal
from discovery.hull import Hull
from discovery.types import (
    Budget,
    Candidate,
    Checkpoint,
    EnergyScale,
    Evaluation,
    LabelledCrystal,
    Sample,
    Target,
)


class PluginConfig(BaseModel):
    """Base of every plug-in's configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class SinceLearning:
    """What has come in since the generator has learned.

    Parameters
    ----------
    verdicts
        Verdicts given since the generator was last trained, or since the campaign began.
    idle_verdicts
        Verdicts given since the last one that brought a new phase onto the reference hull.
    idle_rounds
        Rounds gone by since the last new phase on the reference hull, or since the generator was last trained.
    hours
        Wall time since the generator has learned or the driver has begun; 0 in a deterministic campaign.
    """

    verdicts: int = 0
    idle_verdicts: int = 0
    idle_rounds: int = 0
    hours: float = 0.0

    def with_verdict(self, *, on_hull: bool) -> SinceLearning:
        """Return this after one more verdict."""
        idle = 0 if on_hull else self.idle_verdicts + 1
        return replace(self, verdicts=self.verdicts + 1, idle_verdicts=idle)


@dataclass(frozen=True)
class CampaignView:
    """Frozen view of a campaign, given to agents.

    Parameters
    ----------
    seed
        Seed for this decision; the only source of randomness an agent may use.
    round
        Current round, counted from 0.
    elements
        Elements of the chemical space.
    max_atoms
        Largest cell that may be asked for.
    samples_per_target
        How many samples a target should ask for.
    screening_hull, reference_hull
        Hulls of the two energy scales.
    candidates
        All candidates so far, of all rounds, sorted by id; gathered at the first look, so look before you return.
    budget
        What is left to spend.
    stable_threshold
        eV/atom above the hull up to which a verdict is stable.
    since_learning
        What has come in since the generator has learned.
    """

    seed: int
    round: int
    elements: tuple[str, ...]
    max_atoms: int
    samples_per_target: int
    screening_hull: Hull
    reference_hull: Hull
    candidates: Sequence[Candidate]
    budget: Budget
    stable_threshold: float = 1e-3
    since_learning: SinceLearning = SinceLearning()


@runtime_checkable
class Generator(Protocol):
    """Samples crystals for targets and learns from what turned out stable."""

    Config: ClassVar[type[PluginConfig]]

    def sample(self, targets: Sequence[Target], *, seed: int) -> list[Sample]:
        """Return ``sum(t.n_samples)`` samples ordered by target, of exact compositions, failures in place."""
        ...

    def learn(self, crystals: Sequence[LabelledCrystal], *, seed: int, folder: Path) -> Checkpoint | None:
        """Train on `crystals`, write the weights into `folder` and use them from now on; None if it cannot learn."""
        ...

    def load(self, checkpoint: Checkpoint) -> None:
        """Use the weights of `checkpoint` from now on."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The weights in use; None for generators without weights."""
        ...


@runtime_checkable
class TrainableGenerator(Protocol):
    """A generator whose weights `discovery train` can make from scratch."""

    TrainConfig: ClassVar[type[PluginConfig]]

    @classmethod
    def train(
        cls,
        crystals: Sequence[LabelledCrystal],
        validation: Sequence[LabelledCrystal],
        *,
        config: Any,
        folder: Path,
        metadata: Mapping[str, Any],
        on_validation: Callable[[int, float], None] | None = None,
    ) -> Checkpoint:
        """Train on `crystals`, going on with what `folder` already holds; return the weights best on `validation`.

        `config` is a ``TrainConfig``; `metadata`, a JSON object, is stored with the weights. `on_validation` is called
        with the step and the loss of every validation; what it raises ends the training. The checkpoint's metrics have
        the best of these losses as ``validation_loss``.
        """
        ...


@runtime_checkable
class Oracle(Protocol):
    """Answers with energies of one scale."""

    Config: ClassVar[type[PluginConfig]]

    @property
    def energy_scale(self) -> EnergyScale:
        """What makes this oracle's energies comparable."""
        ...

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        """Return one evaluation per crystal, in order; a bad crystal gives a failure in its place, never an exception.

        `folder` is where an external program keeps its files; oracles without files ignore it.
        """
        ...


@runtime_checkable
class FineTunableOracle(Protocol):
    """An oracle whose weights `discovery finetune` can adapt to the results of another one."""

    Config: ClassVar[type[PluginConfig]]
    FineTuneConfig: ClassVar[type[PluginConfig]]

    @property
    def energy_scale(self) -> EnergyScale:
        """Scale of the weights in use."""
        ...

    def fine_tune(
        self,
        training: Sequence[Evaluation],
        validation: Sequence[Evaluation],
        *,
        config: Any,
        folder: Path,
        metadata: Mapping[str, Any],
    ) -> Checkpoint:
        """Learn from `training`, write the weights that are best on `validation` into `folder` and use them.

        `config` is a ``FineTuneConfig``; all evaluations have one energy scale; `metadata`, a JSON object, is stored
        with the weights. The checkpoint's ``path`` is what the oracle's option ``model`` takes.
        """
        ...


@runtime_checkable
class Agent(Protocol):
    """Decides which compositions to ask for and which candidates to compute."""

    Config: ClassVar[type[PluginConfig]]

    def propose(self, view: CampaignView, n: int) -> list[Target]:
        """Return at most `n` targets, each with its reason."""
        ...

    def select(self, view: CampaignView, screened: Sequence[Candidate], budget: Budget) -> list[tuple[Candidate, str]]:
        """Return the candidates worth a reference calculation, best first, each with its reason.

        No two of `screened` have the same structure, and none that of a known phase or a computed candidate. At most
        ``budget.left("reference_calls")`` are taken.
        """
        ...


@runtime_checkable
class LearningAgent(Agent, Protocol):
    """An agent that also decides when the generator learns; without one it learns whenever there is enough new."""

    def reason_to_learn(self, view: CampaignView, lessons: Sequence[LabelledCrystal]) -> str | None:
        """Return why the generator should be trained now, in words and numbers; None if it is better to wait.

        `lessons` are the stable and metastable crystals it has not learned from yet. Asked after each round or, in a
        streaming campaign, after each verdict; never with fewer lessons than ``min_new_crystals``.
        """
        ...
