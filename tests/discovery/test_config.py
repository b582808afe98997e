"""Configurations: what composes, and what each mistake is answered with."""

from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from discovery import plugins
from discovery.config import CampaignConfig, compose, read
from discovery.errors import ConfigError, MissingDependencyError

CONFIGS = Path(str(resources.files("configs")))
LIGHT = ("oracle/screening=emt", "oracle/reference=emt", "generator=random_search", "agent=random")

CAMPAIGN = """
defaults:
  - override /oracle@oracle.screening: emt
  - override /oracle@oracle.reference: emt
  - override /generator: random_search
  - override /agent: random
campaign:
  chemical_space: Cu-Au
  budget: {reference_calls: 4}
"""


@pytest.fixture
def own(tmp_path):
    """Write a campaign file of the user and return its path; `change` replaces text in it."""

    def write(change=("", ""), more=""):
        path = tmp_path / "own.yaml"
        path.write_text(CAMPAIGN.replace(*change) + more)
        return path

    return write


def error(campaign, *overrides, config_dir=None):
    with pytest.raises(ConfigError) as caught:
        compose(str(campaign), overrides, config_dir)
    return str(caught.value)


def test_command_line_of_the_quickstart():
    config = compose(
        "quickstart",
        [*LIGHT, "campaign.chemical_space=Cu-Au", "campaign.rounds=2", "seed=7", "run_dir=runs/cuau"],
    )
    assert config.oracle.screening.name == config.oracle.reference.name == "emt"
    assert config.generator.name == "random_search"
    assert config.agent.name == "random"
    assert config.campaign.elements == ("Cu", "Au")
    assert (config.campaign.rounds, config.seed, config.run_dir) == (2, 7, Path("runs/cuau"))


def test_defaults_of_the_root_and_of_the_campaign():
    config = compose("quickstart", LIGHT)
    assert (config.name, config.seed, config.run_dir) == ("quickstart", 0, Path("runs/quickstart"))
    assert config.campaign.elements == ("Mg", "Si", "Ge")


@pytest.mark.parametrize("path", sorted((CONFIGS / "campaign").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_campaign_composes_with_its_own_plugins(path):
    values = {"path: ???": "references.path=known.csv", "chemical_space: ???": "campaign.chemical_space=Cu-Au"}
    missing = [setting for mark, setting in values.items() if mark in path.read_text()]
    assert compose(path.stem, missing).name == path.stem


@pytest.mark.parametrize(("folder", "group"), [("oracle", "oracles"), ("generator", "generators"), ("agent", "agents")])
def test_every_plugin_has_a_configuration(folder, group):
    configured = {yaml.safe_load(path.read_text())["name"] for path in (CONFIGS / folder).glob("*.yaml")}
    shipped = entry_points(group=f"discovery.{group}")
    assert configured == {point.name for point in shipped if point.dist and point.dist.name == "discovery-engine"}


def test_a_file_of_the_user_is_a_campaign(own):
    config = compose(str(own()))
    assert config.name == "own"
    assert config.run_dir == Path("runs/own")
    assert config.generator.name == "random_search"
    assert config.campaign.budget.limits == {"reference_calls": 4.0}


def test_command_line_wins_over_the_campaign_and_the_campaign_over_the_choice(own):
    path = own(more="generator: {max_atoms: 9}\n")
    assert compose(str(path)).generator.options.max_atoms == 9
    assert compose(str(path), ["generator.max_atoms=5"]).generator.options.max_atoms == 5


def test_own_folder_adds_and_replaces_choices(tmp_path):
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator/small.yaml").write_text("name: random_search\nmax_atoms: 4\n")
    (tmp_path / "generator/random_search.yaml").write_text("name: random_search\nmax_atoms: 6\n")
    options = {
        choice: compose("quickstart", [*LIGHT, f"generator={choice}"], tmp_path).generator.options.max_atoms
        for choice in ("small", "random_search")
    }
    assert options == {"small": 4, "random_search": 6}


def test_a_choice_creates_its_plugin():
    generator = compose("quickstart", [*LIGHT, "generator.max_atoms=5"]).generator.create()
    assert isinstance(generator, plugins.load("generators", "random_search"))
    assert generator.config.max_atoms == 5


def test_a_reference_to_another_key_is_followed():
    assert compose("quickstart", [*LIGHT, "seed=4", "run_dir='runs/${name}-${seed}'"]).run_dir == Path(
        "runs/quickstart-4"
    )


def test_round_trips_keep_everything(tmp_path):
    config = compose("quickstart", [*LIGHT, "generator.volume_factor=[0.9,1.1]", "campaign.stable_threshold=1e-5"])
    config.save(tmp_path / "config.yaml")
    for copy in (
        read(tmp_path / "config.yaml"),
        CampaignConfig.model_validate_json(config.model_dump_json()),
        CampaignConfig.model_validate(config.model_dump()),
        CampaignConfig.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())),
    ):
        assert copy == config
        assert copy.config_hash == config.config_hash


def test_the_hash_covers_what_can_change_a_result_and_nothing_else():
    hashes = {
        change: compose("quickstart", [*LIGHT, change]).config_hash
        for change in ("seed=0", "run_dir=elsewhere", "executor.name=in_process", "seed=1", "generator.max_atoms=5")
    }
    assert hashes["seed=0"] == hashes["run_dir=elsewhere"] == hashes["executor.name=in_process"]
    assert len({hashes["seed=0"], hashes["seed=1"], hashes["generator.max_atoms=5"]}) == 3


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        compose("quickstart", LIGHT).seed = 3


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("campaign.chemical_spce=Cu-Au", "campaign.chemical_spce", "did you mean 'chemical_space'?"),
        ("campain.rounds=2", "campain.rounds", "did you mean 'campaign'?"),
        ("campaign.budget.reference_cals=3", "campaign.budget.reference_cals", "did you mean 'reference_calls'?"),
        ("oracle.screening.fmxa=0.1", "oracle.screening.fmxa", "did you mean 'fmax'?"),
        ("oracle.screning.fmax=0.1", "oracle.screning", "did you mean 'screening'?"),
        ("generator.max_atom=4", "generator.max_atom", "did you mean 'max_atoms'?"),
        ("generatr=random_search", "generatr", "did you mean 'generator'?"),
        ("references.sorce=csv", "references.sorce", "did you mean 'source'?"),
        ("executor.screening_wrkers=2", "executor.screening_wrkers", "did you mean 'screening_workers'?"),
        ("oracle/screening=chgnt", "oracle/screening", "did you mean 'chgnet'?"),
        ("oracle/screning=emt", "oracle/screning", "did you mean 'oracle/screening'?"),
        ("oracle=emt", "oracle", "oracle/screening, oracle/reference"),
        ("generator=unimt", "generator", "did you mean 'unimat'?"),
        ("generator.name=unimt", "generator.name", "did you mean 'unimat'?"),
        ("agent=gredy", "agent", "did you mean 'greedy'?"),
        ("executor.name=rai", "executor.name", "did you mean 'ray'?"),
        ("references.source=cvs", "references.source", "did you mean 'csv'?"),
        ("campaign.chemical_space=Mg-Xx", "campaign.chemical_space", "did you mean 'Xe'?"),
        ("campaign.chemical_space=mg-Si", "campaign.chemical_space", "did you mean 'Mg'?"),
        ("campaign.chemical_space=", "campaign.chemical_space", "no element"),
        ("campaign.chemical_space=Mg-Mg", "campaign.chemical_space", "twice"),
        ("campaign.rounds=0", "campaign.rounds", "greater than or equal to 1"),
        ("campaign.rounds=two", "campaign.rounds", "integer"),
        ("campaign.stable_threshold=0.5", "campaign", "metastable_threshold is smaller"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("executor=ray", "executor", "dictionary"),
        ("generator.volume_factor=[2,1]", "generator", "volume_factor"),
        ("hydra.run.dir=x", "hydra.run.dir", "unknown key"),
    ],
)
def test_mistakes_name_key_place_and_nearest_valid_one(override, key, hint):
    message = error("quickstart", *LIGHT, override)
    assert message.startswith(f"{key} (command line): ")
    assert hint in message


@pytest.mark.parametrize("override", ["seed", "+seed=3", "++seed=3", "~seed", "seed=1,2", "seed=(", "a b=1", "=3"])
def test_malformed_overrides_show_the_right_form(override):
    message = error("quickstart", *LIGHT, override)
    assert message.startswith(repr(override))
    assert "write key=value" in message


def test_the_campaign_is_no_override():
    assert "first argument" in error("quickstart", "campaign=li_mn_o")


def test_several_mistakes_are_told_at_once():
    message = error("quickstart", *LIGHT, "campaign.rounds=0", "seed=x", "generator.max_atom=1")
    assert [line.split(" ")[0] for line in message.splitlines()] == ["seed", "campaign.rounds", "generator.max_atom"]


@pytest.mark.parametrize("budget", ["budget: {}", "budget: {reference_calls: null}", ""])
def test_no_budget_is_refused(own, budget):
    path = own(("budget: {reference_calls: 4}", budget))
    message = error(path)
    assert message.startswith("campaign.budget")
    assert str(path) in message
    assert "at least one limit" in message or "stopping rule" in message


def test_unknown_campaign_names_the_nearest():
    message = error("quikstart")
    assert "did you mean 'quickstart'?" in message


def test_missing_campaign_file_is_named(tmp_path):
    assert str(tmp_path / "none.yaml") in error(tmp_path / "none.yaml")


def test_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "none") in error("quickstart", config_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("chemical_space", "chemical_spce", "did you mean 'chemical_space'?"),
        ("Cu-Au", "Cu-Aw", "'Aw' is not an element"),
        ("screening: emt", "screening: emtt", "did you mean 'emt'?"),
        ("generator: random_search", "generator: random_serch", "did you mean 'random_search'?"),
        ("campaign:\n", "campain:\n", "did you mean 'campaign'?"),
        ("override /agent", "override /agnt", "did you mean 'agent'?"),
        ("{reference_calls: 4}", "{reference_calls: 4", "not valid YAML"),
        ("campaign:\n", "_target_: os.system\ncampaign:\n", "_target_"),
        ("campaign:\n", "generator: {x: {_target_: os.system}}\ncampaign:\n", "_target_"),
        ("campaign:\n", "hydra: {callbacks: {}}\ncampaign:\n", "hydra"),
        ("Cu-Au", "${oc.env:HOME}", "environment"),
        ("Cu-Au", "${oc.decode:${oc.env:HOME}}", "environment"),
        ("Cu-Au", "${hydra:job.name}", "resolvers"),
        ("generator: random_search", "generator: ${oc.env:HOME}", "environment"),
        ("Cu-Au", "${nme}", "nme"),
    ],
)
def test_mistakes_in_a_file_name_the_file(own, old, new, hint):
    assert old in CAMPAIGN
    path = own((old, new))
    message = error(path)
    assert str(path) in message
    assert hint in message


def test_mistake_in_a_chosen_file_names_that_file(tmp_path):
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator/mine.yaml").write_text("name: random_search\nmax_atms: 4\n")
    message = error("quickstart", *LIGHT, "generator=mine", config_dir=tmp_path)
    assert message.startswith(f"generator.max_atms ({tmp_path / 'generator/mine.yaml'}): ")


def test_mistake_in_a_saved_configuration_names_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    compose("quickstart", LIGHT).save(path)
    path.write_text(path.read_text().replace("rounds:", "ronds:"))
    with pytest.raises(ConfigError, match="did you mean 'rounds'") as caught:
        read(path)
    assert f"campaign.ronds ({path})" in str(caught.value)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "'${oc.env:HOME}'", "${oc.env:HOME,x}"])
def test_the_environment_is_out_of_reach_from_the_command_line(value):
    message = error("quickstart", *LIGHT, f"run_dir={value}")
    assert message.startswith("run_dir (command line): ")
    assert str(Path.home()) not in message


def test_a_required_value_asks_for_itself():
    message = error("li_mn_o", *LIGHT)
    assert message.startswith("references.path (")
    assert "references.path=VALUE" in message


def test_unknown_plugin_lists_the_valid_ones():
    with pytest.raises(ConfigError, match=r"did you mean 'random_search'.*unimat"):
        plugins.load("generators", "random_serch")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with one oracle whose module has the given text."""

    def install(text):
        info = tmp_path / "extra_oracles-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-oracles\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[discovery.oracles]\nextra = extra_oracles:Extra\n")
        (tmp_path / "extra_oracles.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_a_package_of_the_user_adds_a_plugin(installed):
    installed("class Extra: ...")
    assert "extra" in plugins.names("oracles")
    assert plugins.load("oracles", "extra").__name__ == "Extra"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("import a_package_nobody_has.part", "pip install a_package_nobody_has"),
        ("class Other: ...", "reinstall extra-oracles"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_what_to_do(installed, monkeypatch, text, step):
    installed(text)
    monkeypatch.delitem(__import__("sys").modules, "extra_oracles", raising=False)
    with pytest.raises(MissingDependencyError, match=step):
        plugins.load("oracles", "extra")
