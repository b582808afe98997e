"""`discovery trace`: one candidate's way agrees with what the store, the files and the checkpoints hold."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from discovery.errors import RunError
from discovery.runfolder import RunFolder
from discovery.store import Store
from discovery.trace import find_run, trace
from discovery.types import Candidate, State
from tests.discovery.campaigns import run, tiny_config
from tests.discovery.test_cli import call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    search = {"metastable_threshold": 1.0, "rounds": 2, "samples_per_target": 11}
    return run(tiny_config(tmp_path_factory.mktemp("trace") / "runs" / "tiny", campaign=search))


@pytest.fixture(scope="module")
def store(finished: Path) -> Store:
    return RunFolder(finished).read_store()


@pytest.fixture(scope="module")
def learned(store: Store) -> Candidate:
    return store.candidates({State.LEARNED})[0]


def shown(finished: Path, candidate: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    call("trace", candidate, "--run", str(finished), "--json")
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_the_whole_way_of_a_candidate(
    finished: Path, store: Store, learned: Candidate, capsys: pytest.CaptureFixture[str]
) -> None:
    way = shown(finished, learned.id, capsys)
    assert [arrow["state"] for arrow in way["arrows"]] == [to for _, _, to, _ in store.transitions(learned.id)]
    assert way["arrows"][-1]["state"] == "learned"
    assert re.fullmatch(r"\d+ new crystals?", way["learned_by"][0]["reason"])
    target = next(record for record in store.targets() if learned.id.startswith(record.id))
    assert (way["target"]["id"], way["target"]["seed"]) == (target.id, target.seed)
    assert way["target"]["reason"] == target.target.reason != ""

    for role in ("screening", "reference"):
        result = json.loads((RunFolder(finished).calculation(learned.id, role) / "result.json").read_text())
        expected = result["evaluation"]
        assert way["evaluations"][role]["energy"] == expected["energy"]
        assert way["evaluations"][role]["seconds"] == expected["seconds"]
        assert way["evaluations"][role]["energy_scale"]["version"] == expected["energy_scale"]["version"]
        assert Path(way["evaluations"][role]["folder"], "result.json").is_file()
    assert learned.verdict is not None
    assert way["verdict"]["hull_version"] == learned.verdict.hull_version
    assert way["verdict"]["e_above_hull"] == learned.verdict.e_above_hull

    (checkpoint,) = way["learned_by"]
    assert learned.id in checkpoint["trained_on"]
    weights = finished / checkpoint["path"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == checkpoint["sha256"]


def test_what_it_was_sampled_with_goes_back_to_the_first_weights(
    finished: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    late = next(candidate for candidate in store.candidates() if candidate.round == 1)
    newest, initial = shown(finished, late.id, capsys)["sampled_with"]
    assert (newest["round"], initial["round"]) == (0, None)
    assert newest["parent"] == initial["sha256"]


def test_the_tree_says_it_in_words(finished: Path, learned: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    call("trace", learned.id, "--run", str(finished))
    out = capsys.readouterr().out
    assert out.startswith(f"{learned.id}  {learned.crystal.formula}, learned")
    assert learned.verdict is not None
    for word in (
        learned.target.reason,
        "decomposition energy",
        f"hull version {learned.verdict.hull_version} of {learned.verdict.energy_scale}",
        "energy scale emt-emt",
        "checkpoint r00",
    ):
        assert word in out
    states = ["proposed", "sampled", "admitted", "screened", "selected", "computed", "judged", "learned"]
    assert sorted(states, key=lambda state: out.index(f"── {state}")) == states


def test_every_candidate_can_be_traced(finished: Path, store: Store) -> None:
    ids = store.candidate_ids()
    assert len(ids) == store.funnel()["sampled"]
    for id_ in ids:
        followed = trace(finished, id_)
        assert followed.history.id == id_
        assert followed.tree().children
        json.dumps(followed.to_dict())


def test_an_unambiguous_beginning_is_enough(finished: Path) -> None:
    assert trace(finished, "r01-t001-s1").history.id == "r01-t001-s10"
    with pytest.raises(RunError, match=r"fits 11 candidates: r01-t001-s00, .* and 1 more; write more"):
        trace(finished, "r01-t001")
    with pytest.raises(RunError, match="did you mean 'r01-t001-s"):
        trace(finished, "r01-t001-x00")
    with pytest.raises(RunError, match="round, target, sample"):
        trace(finished, "r%")


def test_the_run_folder_is_found(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    assert find_run(None).resolve() == finished
    monkeypatch.chdir(finished.parent.parent)
    assert find_run(None).resolve() == finished
    assert find_run(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="--run; there is none"):
        find_run(None)
