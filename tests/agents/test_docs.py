"""The agent of docs/agents.md works as it stands there."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from discovery import plugins
from discovery.protocols import Agent
from discovery.types import Budget

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """Import path of the page's agent; its test as a function."""
    agent, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(agent.splitlines()) <= 50
    (tmp_path / "my_agents.py").write_text(agent)
    (tmp_path / "my_test.py").write_text(test)
    monkeypatch.syspath_prepend(str(tmp_path))
    load = plugins.load
    monkeypatch.setattr(
        plugins,
        "load",
        lambda group, name: import_module("my_agents").SmallestFirst if name == "smallest" else load(group, name),
    )
    yield import_module("my_agents").SmallestFirst, import_module("my_test")
    for name in ("my_agents", "my_test"):
        sys.modules.pop(name)


def test_its_test_passes(blocks, tmp_path):
    blocks[1].test_it_asks_for_small_cells_and_spends_its_budget(tmp_path / "runs")


def test_it_keeps_what_every_agent_keeps(blocks, make):
    agent = blocks[0](blocks[0].Config())
    assert isinstance(agent, Agent)
    candidates = make.screened(("Mg", "Si", "Ge"), 10)
    known = make.view(("Mg", "Si", "Ge"), candidates=candidates)
    targets = agent.propose(known, 5)
    assert len(targets) == 5
    assert all(set(target.composition) <= {"Mg", "Si", "Ge"} for target in targets)
    assert targets == agent.propose(known, 5)
    assert len(agent.select(known, candidates, Budget({"reference_calls": 3}))) == 3
    assert agent.select(known, candidates, Budget({"reference_calls": 0})) == []
    assert len(agent.select(known, candidates, Budget())) == 10
