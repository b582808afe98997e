"""Training of a generator by several processes, on this machine or on a cluster, through Ray Train."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery.errors import ConfigError, DiscoveryError, RunError
from discovery.executor import LOCAL_RAY, THREADS
from discovery.types import Checkpoint

if TYPE_CHECKING:
    from discovery.generation import TrainingJob


def train_on_workers(job: TrainingJob, config: Any, folder: Path, *, workers: int, address: str | None) -> Checkpoint:
    """Train with `workers` processes, each with a GPU if there are as many, going on with what `folder` holds.

    Ray Train starts the processes and connects them; what they do is what they do under ``torchrun``. The state to
    resume from is the training's own, in `folder`, so that nothing depends on what Ray keeps.

    Parameters
    ----------
    job
        What to train on which data.
    config
        Training configuration of the generator.
    folder
        Where everything is written; on a cluster all machines must see it under the same path.
    workers
        Number of processes.
    address
        Of a running Ray cluster; None starts Ray on this machine.

    Raises
    ------
    ConfigError
        If there are fewer CPUs than workers.
    RunError
        If Ray cannot be started or reached, or a worker dies.
    DiscoveryError
        What the training itself raises.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchTrainer

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if address is None:
        os.environ.update(LOCAL_RAY)
    cores = os.cpu_count() or 1
    where = {"address": address} if address is not None else {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(**where, runtime_env={"env_vars": THREADS}, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RunError(
            f"Ray cannot be started or reached (address {address or 'of this machine'}): {error}; check --address, or "
            "train with one worker"
        ) from error
    try:
        resources = ray.cluster_resources()
        if resources.get("CPU", 0) < workers:
            raise ConfigError(f"--workers {workers}: Ray has {resources.get('CPU', 0):g} CPUs; ask for as many at most")
        trainer = TorchTrainer(
            _train,
            train_loop_config={"work": ray.put((job, config)), "folder": str(folder)},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=resources.get("GPU", 0) >= workers),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        result = trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, DiscoveryError):
                raise failure from error
        raise RunError(f"{error}; the same command goes on from the state in {folder}") from error
    except TrainingFailedError as error:
        raise RunError(f"{error}; the same command goes on from the state in {folder}") from error
    finally:
        ray.shutdown()
    return Checkpoint(**result.return_value)  # type: ignore[attr-defined] # mypy sees Ray Train's first version


def _train(settings: dict[str, Any]) -> Any:
    """Train in a worker; Ray has set the environment that says which one it is."""
    import ray

    job, config = ray.get(settings["work"])
    return asdict(job.run(config, Path(settings["folder"])))
