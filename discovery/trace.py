"""The way of one candidate, from the agent's reason to the checkpoint that learned from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from discovery import plugins
from discovery.errors import RunError
from discovery.runfolder import RunFolder
from discovery.store import Arrow, CheckpointRecord, History, Store
from discovery.types import Evaluation, State

_ROLE_OF = {State.SCREENED: "screening", State.COMPUTED: "reference"}
_SHOWN = 10
"""How many of the candidates that fit an abbreviated id a message lists."""


@dataclass(frozen=True)
class Trace:
    """The way of one candidate.

    Parameters
    ----------
    campaign
        Name of its campaign.
    history
        What is stored of the candidate itself.
    sampled_with
        The generator's weights and their ancestors, newest first; empty for generators without weights.
    learned_by
        Checkpoints that were trained on it, oldest first.
    folders
        Role → folder of the calculation.
    """

    campaign: str
    history: History
    sampled_with: tuple[CheckpointRecord, ...]
    learned_by: tuple[CheckpointRecord, ...]
    folders: Mapping[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `discovery trace --json` shows; energies in eV, durations in seconds."""
        history = self.history
        target = history.target
        return {
            "campaign": self.campaign,
            "id": history.id,
            "formula": history.formula,
            "state": history.state,
            "target": {"id": target.id, "round": target.round, "seed": target.seed, **target.target.to_dict()},
            "sample": history.sample,
            "sampled_with": [_checkpoint(record) for record in self.sampled_with],
            "arrows": [asdict(arrow) for arrow in history.arrows],
            "evaluations": {role: self._evaluation(role) for role in history.evaluations},
            "screening_decomposition_energy": history.screening_decomposition_energy,
            "screening_hull_version": history.screening_hull_version,
            "verdict": asdict(history.verdict) if history.verdict is not None else None,
            "learned_by": [_checkpoint(record) for record in self.learned_by],
        }

    def _evaluation(self, role: str) -> dict[str, Any]:
        evaluation = self.history.evaluations[role]
        failure = evaluation.failure
        return {
            "energy_scale": {"id": evaluation.energy_scale.id, **asdict(evaluation.energy_scale)},
            "energy": evaluation.energy,
            "energy_per_atom": evaluation.energy_per_atom if evaluation.ok else None,
            "converged": evaluation.converged,
            "corrections": dict(evaluation.corrections),
            "seconds": evaluation.seconds,
            "cores": evaluation.cores,
            "core_hours": evaluation.core_hours,
            "failure": asdict(failure) if failure is not None else None,
            "folder": str(self.folders[role]),
        }

    def tree(self) -> Tree:
        """Return the tree that `discovery trace` shows."""
        history = self.history
        tree = Tree(f"[bold]{history.id}[/bold]  {history.formula or 'no crystal'}, {history.state}")
        target = history.target
        asked = tree.add(
            f"[bold]proposed[/bold] in round {target.round + 1} as target {target.id}: {target.target.label}"
        )
        if target.target.reason:
            asked.add(target.target.reason)
        for name, value in target.target.guidance.items():
            asked.add(f"guidance {name} = {value:g}")
        for arrow in history.arrows:
            branch = tree.add(_heading(arrow))
            for line in self._lines(arrow):
                branch.add(escape(line))
        return tree

    def _lines(self, arrow: Arrow) -> Iterator[str]:
        """Yield what belongs to an arrow beside its cause."""
        history = self.history
        if arrow.state is State.SAMPLED:
            yield f"seed {history.target.seed}, sample {history.sample + 1} of {history.target.target.n_samples}"
            for record in self.sampled_with:
                yield f"weights {_short(record)}"
            if not self.sampled_with:
                yield f"weights {history.checkpoint[:12]}" if history.checkpoint else "a generator without weights"
        role = _ROLE_OF.get(arrow.state, "")
        if arrow.state is State.FAILED:
            role = "reference" if "reference" in history.evaluations else "screening"
        if role in history.evaluations:
            yield from self._evaluated(role, history.evaluations[role])
        verdict = history.verdict
        if arrow.state is State.JUDGED and verdict is not None:
            yield (
                f"formation energy {verdict.formation_energy_per_atom:+.4f}, decomposition energy "
                f"{verdict.decomposition_energy:+.4f} eV/atom on hull version {verdict.hull_version} of "
                f"{verdict.energy_scale}"
            )
            yield f"stable up to {verdict.threshold:g}, metastable up to {verdict.metastable_threshold:g} eV/atom"
            if verdict.decomposition:
                products = " + ".join(f"{amount:.3g} {formula}" for formula, amount in verdict.decomposition.items())
                yield f"competes with {products}"
        if arrow.state is State.LEARNED:
            for record in self.learned_by:
                yield f"checkpoint {_short(record)}"
                if record.reason:
                    yield f"why then: {record.reason}"

    def _evaluated(self, role: str, evaluation: Evaluation) -> Iterator[str]:
        scale = evaluation.energy_scale
        yield f"energy scale {scale.id}: {scale.code} {scale.version}, {scale.functional}"
        if evaluation.ok and evaluation.energy is not None:
            ending = "converged" if evaluation.converged else "not converged"
            yield f"{evaluation.energy:.4f} eV, {evaluation.energy_per_atom:.4f} eV/atom, {ending}"
        for name, value in evaluation.corrections.items():
            yield f"of which correction {name}: {value:+.4f} eV"
        if role == "screening" and self.history.screening_decomposition_energy is not None:
            yield (
                f"decomposition energy {self.history.screening_decomposition_energy:+.4f} eV/atom on version "
                f"{self.history.screening_hull_version} of the screening hull"
            )
        yield f"{evaluation.seconds:.2f} s on {evaluation.cores} core{'s' if evaluation.cores > 1 else ''}"
        yield str(self.folders[role])


def trace(run_dir: Path, candidate: str) -> Trace:
    """Follow one candidate of the campaign in `run_dir`.

    Parameters
    ----------
    run_dir
        The run folder.
    candidate
        Id of the candidate, or a beginning of it that no other id has.

    Raises
    ------
    RunError
        If there is no such candidate or there are several; the message names those that come near.
    """
    folder = RunFolder(run_dir)
    store = folder.read_store()
    try:
        history = store.history(_complete(store, candidate))
        checkpoints = store.checkpoints()
        return Trace(
            campaign=store.name,
            history=history,
            sampled_with=tuple(_ancestry(checkpoints, history.checkpoint)),
            learned_by=tuple(record for record in checkpoints if history.id in record.checkpoint.trained_on),
            folders={role: folder.calculation(history.id, role) for role in history.evaluations},
        )
    finally:
        store.close()


def find_run(run_dir: Path | None) -> Path:
    """Return the run folder that is meant where none is named: this folder, or the only one in ``runs``.

    Raises
    ------
    RunError
        If it is not clear which is meant; the message names those there are.
    """
    if run_dir is not None:
        return run_dir
    here = Path()
    if RunFolder(here).holds_campaign:
        return here
    runs = sorted(path for path in Path("runs").glob("*") if path.is_dir() and RunFolder(path).holds_campaign)
    if len(runs) == 1:
        return runs[0]
    there = f"there are {', '.join(map(str, runs))}" if runs else "there is none in runs"
    raise RunError(f"which campaign? Give its run folder with --run; {there}")


def _complete(store: Store, candidate: str) -> str:
    found = store.candidate_ids(candidate)
    if candidate in found:
        return candidate
    if len(found) == 1:
        return found[0]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RunError(
            f"{candidate!r} fits {len(found)} candidates: {', '.join(found[:_SHOWN])}{more}; write more of it"
        )
    ids = store.candidate_ids(candidate.partition("-")[0]) or store.candidate_ids()
    if not ids:
        raise RunError(f"campaign {store.name!r} has no candidates yet; see `discovery status`")
    near = plugins.nearest(candidate, ids[:1000])
    hint = f"did you mean {near!r}? " if near else ""
    raise RunError(
        f"campaign {store.name!r} has no candidate {candidate!r}; {hint}Ids look like {ids[0]}: round, target, sample"
    )


def _ancestry(checkpoints: list[CheckpointRecord], sha256: str | None) -> Iterator[CheckpointRecord]:
    """Yield the checkpoint `sha256` and its ancestors, newest first."""
    known = {record.checkpoint.sha256: record for record in checkpoints}
    while sha256 is not None and (record := known.pop(sha256, None)) is not None:
        yield record
        sha256 = record.checkpoint.parent


def _heading(arrow: Arrow) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(arrow.time))
    return f"[bold]{arrow.state.replace('_', ' ')}[/bold] {escape(arrow.cause)}  [dim]{when}[/dim]"


def _short(record: CheckpointRecord) -> str:
    checkpoint = record.checkpoint
    trained = f", trained on {len(checkpoint.trained_on)} crystals" if checkpoint.trained_on else ""
    parent = f", parent {checkpoint.parent[:12]}" if checkpoint.parent else ""
    return f"{record.id} {checkpoint.sha256[:12]}{trained}{parent}"


def _checkpoint(record: CheckpointRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "round": record.round,
        "accepted": record.accepted,
        "reason": record.reason,
        "hull_version": record.hull_version,
        **asdict(record.checkpoint),
    }
