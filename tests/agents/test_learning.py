"""When the generator learns: each condition alone, none, several."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from agents.greedy import GreedyAgent
from agents.learning import LearningRule
from agents.random import RandomAgent
from discovery.protocols import LearningAgent, SinceLearning
from discovery.types import LabelledCrystal


@pytest.fixture
def lessons(make):
    return [LabelledCrystal(make.compound("fluorite", 6.3, "SiMg2"))] * 2


def reason(make, lessons, since, **conditions):
    view = replace(make.view(("Mg", "Si")), since_learning=since)
    return LearningRule(**conditions).reason(view, lessons)


@pytest.mark.parametrize(
    ("condition", "since", "expected"),
    [
        ("verdicts", "verdicts", "7 verdicts since it has learned, 2 new crystals"),
        ("hours", "hours", "7.00 hours since it has learned, 2 new crystals"),
        ("idle_verdicts", "idle_verdicts", "7 verdicts without a new phase on the hull, 2 new crystals"),
        ("idle_rounds", "idle_rounds", "7 rounds without a new phase on the hull, 2 new crystals"),
    ],
)
def test_each_condition_holds_from_its_limit_on_and_says_so(make, lessons, condition, since, expected):
    reached = SinceLearning(**{since: 7})
    assert reason(make, lessons, reached, **{condition: 7}) == expected
    assert reason(make, lessons, reached, **{condition: 8}) is None
    assert reason(make, lessons, SinceLearning(), **{condition: 7}) is None
    assert reason(make, lessons, reached, **{condition: 7, "crystals": 100}) == expected, "one condition is enough"


def test_crystals_are_counted_and_without_conditions_any_is_enough(make, lessons):
    assert reason(make, lessons, SinceLearning(), crystals=2) == "2 new crystals, at least 2 wanted"
    assert reason(make, lessons, SinceLearning(), crystals=3) is None
    assert reason(make, lessons[:1], SinceLearning()) == "1 new crystal"


def test_all_agents_take_the_rule_and_refuse_what_is_none(make, lessons):
    for agent in (GreedyAgent, RandomAgent):
        made = agent(agent.Config(learn={"verdicts": 3}))
        assert isinstance(made, LearningAgent)
        assert made.reason_to_learn(make.view(("Mg", "Si")), lessons) is None
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            agent.Config(learn={"verdicts": 0})
        with pytest.raises(ValidationError, match="moons"):
            agent.Config(learn={"moons": 1})
