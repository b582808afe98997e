"""The files for clusters: valid, and what they launch is a campaign that exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from discovery.config import CampaignConfig, compose

CLUSTER = Path(__file__).parents[1] / "configs" / "cluster"
SLURM = CLUSTER / "slurm.sbatch"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    return data


def bash(script: str) -> str:
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def stays_within(config: CampaignConfig, nodes: int, cores: int) -> None:
    executor = config.executor
    assert executor.reference_cores <= cores
    assert executor.reference_cores * executor.reference_workers <= nodes * cores
    assert executor.address == "auto"


def test_the_slurm_job_launches_what_exists_and_what_its_nodes_can_hold(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, line in {"srun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node07\\nnode08\\n'"}.items():
        (tools / name).write_text(f"#!/bin/bash\n{line}\n")
        (tools / name).chmod(0o755)
    script = SLURM.read_text().replace('source "$VENV/bin/activate"', ":")
    options = dict(re.findall(r"^#SBATCH (--[\w-]+)=(\S+)$", script, flags=re.MULTILINE))
    nodes, cores = int(options["--nodes"]), int(options["--cpus-per-task"])
    environment = f"PATH={tools}:$PATH SLURM_JOB_NODELIST=node[07-08] SLURM_JOB_ID=20001 SLURM_SUBMIT_DIR={tmp_path}"
    environment += f" SLURM_JOB_NUM_NODES={nodes} SLURM_CPUS_PER_TASK={cores}"
    (tmp_path / "job").write_text(script)
    words = bash(f"{environment} bash {tmp_path / 'job'}").splitlines()
    command = words[words.index("--") + 1 :]
    assert words[words.index("--address") + 1] == "node07:20001"
    assert command[:5] == ["env", "RAY_ADDRESS=node07:20001", "discovery", "launch", "quickstart"]
    config = compose(command[4], command[5:])
    assert config.run_dir == tmp_path / "runs" / "quickstart"
    stays_within(config, nodes, cores)

    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").touch()
    again = bash(f"{environment} bash {tmp_path / 'job'}").splitlines()
    assert again[again.index("discovery") :] == ["discovery", "resume", str(config.run_dir)]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_the_kubernetes_job_launches_what_exists_and_what_its_workers_can_hold(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == pods[0]["containers"][0]["image"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    entry = job["spec"]["entrypoint"]
    launched = shlex.split(bash(f'discovery() {{ echo "$@"; }}; {entry}'))
    assert launched[:2] == ["launch", "quickstart"]
    config = compose(launched[1], launched[2:])
    assert str(config.run_dir).startswith(pods[0]["containers"][0]["volumeMounts"][0]["mountPath"])
    cores = int(pods[1]["containers"][0]["resources"]["requests"]["cpu"])
    stays_within(config, workers["replicas"], cores)
