"""Search for settings with Optuna: resumable, pruned, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from discovery.errors import ConfigError, RunError
from discovery.runfolder import locked

MAX_TRIES = 3
"""How often a trial that was interrupted is taken up again."""

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

Direction = Literal["minimize", "maximize"]
Report = Callable[[int, float], None]
"""Takes a step and the objective's value there; raises ``optuna.TrialPruned`` if the trial is to end."""


class Objective(Protocol):
    """What is tuned; picklable, so that Ray can send it to workers."""

    def __call__(self, settings: Sequence[str], folder: Path, report: Report) -> float:
        """Return the value of `settings` (``key=value``); `folder` may hold what an interrupted try has left."""
        ...


@dataclass(frozen=True)
class Sweep:
    """A setting and the values it may take.

    Parameters
    ----------
    key
        Name of the setting, with dots.
    distribution
        Its values; texts stand for lists and names as they are written on the command line.
    """

    key: str
    distribution: BaseDistribution

    def setting(self, value: Any) -> str:
        """Return ``key=value``."""
        return f"{self.key}={value}"

    @property
    def extremes(self) -> tuple[str, ...]:
        """The settings that show whether all values are valid: every choice, or both ends."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return tuple(self.setting(value) for value in distribution.choices)
        assert isinstance(distribution, IntDistribution | FloatDistribution)  # noqa: S101
        return self.setting(distribution.low), self.setting(distribution.high)


def parse_sweeps(settings: Sequence[str]) -> tuple[list[str], list[Sweep]]:
    """Split settings of the command line into fixed ones and sweeps, which are written as in Hydra.

    ``key=a,b`` and ``key=choice(a,b)`` choose; ``interval(1e-4,1e-2)`` is a range of real and ``int(interval(2,8))``
    one of whole numbers, ``tag(log,interval(…))`` on a logarithmic scale; ``range(1,10,2)`` goes in steps and leaves
    out its end.

    Raises
    ------
    ConfigError
        If a sweep cannot be read, or there is none.
    """
    fixed, sweeps = [], []
    for text in settings:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"{text!r}: {str(error).splitlines()[0]}") from error
        if override.is_sweep_override():
            sweeps.append(Sweep(override.key_or_group, _distribution(text, override.value())))
        else:
            fixed.append(text)
    if not sweeps:
        raise ConfigError(
            "there is nothing to tune; give at least one setting several values, such as "
            "'KEY=choice(a,b)', 'KEY=interval(0,1)' or 'KEY=tag(log,interval(1e-4,1e-2))'"
        )
    return fixed, sweeps


def _distribution(text: str, sweep: Any) -> BaseDistribution:
    try:
        match sweep:
            case ChoiceSweep(list=choices):
                return CategoricalDistribution([_written(choice) for choice in choices])
            case IntervalSweep(start=int(low), end=int(high), tags=tags):
                return IntDistribution(low, high, log="log" in tags)
            case IntervalSweep(start=low, end=high, tags=tags) if low is not None and high is not None:
                return FloatDistribution(low, high, log="log" in tags)
            case RangeSweep(start=int(low), stop=int(stop), step=int(step)):
                return IntDistribution(low, low + (stop - 1 - low) // step * step, step=step)
            case RangeSweep(start=low, stop=stop, step=step) if low is not None and stop is not None:
                n_steps = max(0, -int(-(stop - low) // step) - 1)
                return FloatDistribution(float(low), round(low + n_steps * step, 12), step=float(step))
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from error
    raise ConfigError(f"{text!r}: write choice(a,b), interval(0,1) or range(1,10,2)")


def _written(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return value if isinstance(value, bool | int | float | str) else str(value)


@dataclass(frozen=True)
class Tuning:
    """What a study found.

    Parameters
    ----------
    settings
        The best settings, fixed ones included, as ``key=value``.
    value
        The objective's value of the best trial.
    parameters
        Values of the tuned settings in the best trial.
    trial
        Its number.
    trials
        Number of trials by their end: complete, pruned, fail.
    seconds
        Time that this call took.
    """

    settings: tuple[str, ...]
    value: float
    parameters: Mapping[str, Any]
    trial: int
    trials: Mapping[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Study:
    """A study in a folder: what is tuned, and how.

    Parameters
    ----------
    objective
        Gives the value of settings.
    fixed
        Settings of every trial.
    sweeps
        Settings that are tuned.
    folder
        Where trials, plots and, unless `storage` is given, the study's database are kept.
    direction
        Whether small or large values are good.
    pruner
        Ends trials early that will not become the best.
    storage
        Database URL; None takes ``study.db`` in `folder`.
    seed
        Of the sampler (TPE). With several workers, trials also depend on which ends first.
    """

    objective: Objective
    fixed: Sequence[str]
    sweeps: Sequence[Sweep]
    folder: Path
    direction: Direction
    pruner: optuna.pruners.BasePruner
    storage: str | None = None
    seed: int = 0

    def run(self, n_trials: int, *, workers: int = 1, observe: Callable[[FrozenTrial], None] | None = None) -> Tuning:
        """Go on until the study has `n_trials` finished trials; show each finished one to `observe`.

        Raises
        ------
        RunError
            If another process works on the study, it was about other settings, or no trial was completed.
        """
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "study.lock", f"the study in {self.folder}", "wait for it"), quiet_optuna():
            study = self._open()
            self._take_up_interrupted(study)
            finished = [trial for trial in _current(study) if trial.state in _FINISHED]
            seeds = range(len(study.trials), len(study.trials) + n_trials - len(finished))
            for number in self._trials(seeds, workers):
                if observe is not None:
                    observe(study.trials[number])
            return self._result(study, time.monotonic() - began)

    @property
    def _storage_url(self) -> str:
        return self.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"

    def _open(self, trial_seed: int = 0) -> optuna.Study:
        seed = int(np.random.default_rng([self.seed, trial_seed]).integers(2**31))
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        study = optuna.create_study(
            storage=self._storage_url,
            study_name=self.folder.resolve().name,
            sampler=sampler,
            pruner=self.pruner,
            direction=self.direction,
            load_if_exists=True,
        )
        asked: dict[str, Any] = {
            "fixed": list(self.fixed),
            "sweeps": {sweep.key: distribution_to_json(sweep.distribution) for sweep in self.sweeps},
        }
        known = study.user_attrs.get("asked")
        if known is not None and known != asked:
            changed = sorted(
                {text.partition("=")[0] for text in set(known["fixed"]) ^ set(asked["fixed"])}
                | {key for key, _ in set(known["sweeps"].items()) ^ set(asked["sweeps"].items())}
            )
            raise RunError(
                f"{self.folder} holds a study of other settings (different: {', '.join(changed) or 'their order'}); "
                "go on with the same ones, or give another folder with --out"
            )
        study.set_user_attr("asked", asked)
        return study

    def _take_up_interrupted(self, study: optuna.Study) -> None:
        """Queue the trials again that a killed driver has left behind."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            tries = trial.user_attrs.get("tries", 1)
            if tries < MAX_TRIES:
                study.enqueue_trial(trial.params, user_attrs={"tries": tries + 1, "retry_of": trial.number})

    def _trials(self, seeds: Sequence[int], workers: int) -> Iterator[int]:
        """Run a trial for each seed and yield its number as it ends."""
        if workers == 1:
            yield from map(self.run_trial, seeds)
            return
        import ray

        if not ray.is_initialized():
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        remote = ray.remote(num_cpus=1, max_retries=0)(Study.run_trial)
        waiting = iter(seeds)
        pending = [remote.remote(self, seed) for seed in islice(waiting, workers)]
        while pending:
            (done, *_), pending = ray.wait(pending)
            pending += [remote.remote(self, seed) for seed in islice(waiting, 1)]
            yield ray.get(done)

    def run_trial(self, seed: int) -> int:
        """Run one trial of the study, drawn with a `seed` of its own, and return its number; notes an error in it."""
        with quiet_optuna():
            study = self._open(seed)
            trial = study.ask({sweep.key: sweep.distribution for sweep in self.sweeps})
            settings = self.settings(trial.params)
            folder = self.folder / "trials" / hashlib.sha256("\n".join(settings).encode()).hexdigest()[:12]
            trial.set_user_attr("folder", str(folder))

            def report(step: int, value: float) -> None:
                trial.report(value, step)
                if trial.should_prune():
                    raise optuna.TrialPruned

            try:
                value = self.objective(settings, folder, report)
                if not math.isfinite(value):
                    raise RunError(f"the objective is {value}")
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except Exception as error:  # a setting that fails is a result; the user sees the reason
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, value)
        return trial.number

    def settings(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return all settings of a trial, fixed ones first."""
        return [*self.fixed, *(sweep.setting(parameters[sweep.key]) for sweep in self.sweeps)]

    def _result(self, study: optuna.Study, seconds: float) -> Tuning:
        trials = _current(study)
        if not any(trial.state is TrialState.COMPLETE for trial in trials):
            errors = {trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs}
            raise RunError(f"no trial of {self.folder} was completed: {'; '.join(sorted(errors)) or 'all were pruned'}")
        self._plot(study)
        best = study.best_trial
        return Tuning(
            settings=tuple(self.settings(best.params)),
            value=study.best_value,
            parameters=best.params,
            trial=best.number,
            trials={
                state.name.lower(): count
                for state in _FINISHED
                if (count := sum(trial.state is state for trial in trials))
            },
            seconds=seconds,
        )

    def _plot(self, study: optuna.Study) -> None:
        """Write ``study.html``: trials in order, settings against the value, and their importance."""
        from optuna import visualization
        from optuna.importance import PedAnovaImportanceEvaluator

        figures = [visualization.plot_optimization_history(study), visualization.plot_slice(study)]
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in complete}) > 2:
            figures.append(visualization.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        parts = [
            figure.to_html(full_html=False, include_plotlyjs="inline" if number == 0 else False)
            for number, figure in enumerate(figures)
        ]
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Study</title>'
        (self.folder / "study.html").write_text(f"{head}<body>{''.join(parts)}</body></html>")


def _current(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study without those that were interrupted and taken up again."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.number not in retried]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's line per trial and its warnings about experimental samplers."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
