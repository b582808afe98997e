"""A campaign's configuration: composed by Hydra from YAML files and overrides, validated by pydantic.

Files are pure data. Nothing in them is executed: no ``_target_``, no resolver such as ``${oc.env:…}``; only plain
references to other keys, ``${name}``, are followed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pymatgen.core import Element

from discovery import plugins
from discovery.errors import ConfigError
from discovery.protocols import PluginConfig
from discovery.references import ReferencesConfig
from discovery.store.urls import masked, parse_setting

COMMAND_LINE = "command line"

Options = TypeVar("Options", bound=BaseModel)

_YAML = {".yaml", ".yml"}
_GROUPS = ("campaign", "oracle", "generator", "agent")
_CHOICES = {
    "oracle/screening": "oracle@oracle.screening",
    "oracle/reference": "oracle@oracle.reference",
    "generator": "generator",
    "agent": "agent",
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginChoice(_Settings):
    """A plug-in's name; in files, the plug-in's own options stand beside it.

    ``{name: emt, fmax: 0.05}`` becomes ``name="emt"`` and ``options=EMTOracle.Config(fmax=0.05)``.
    """

    group: ClassVar[plugins.Group]

    name: str = Field(description="Name of the plug-in's entry point.")
    options: SerializeAsAny[PluginConfig] = Field(description="The plug-in's own options.")

    def create(self) -> Any:
        """Import the plug-in and construct it from its options."""
        return plugins.load(self.group, self.name)(self.options)

    @model_validator(mode="before")
    @classmethod
    def _load_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if not isinstance(data.get("name"), str):
            raise PydanticCustomError("plugin_name", "names no plug-in")
        options = {key: value for key, value in data.items() if key != "name"}
        try:
            model = plugins.load(cls.group, data["name"]).Config
        except ConfigError as error:
            raise PydanticCustomError("plugin_name", "{reason}", {"reason": str(error)}) from error
        try:
            return {"name": data["name"], "options": model.model_validate(options)}
        except ValidationError as error:
            context = {"errors": error.errors(), "model": model}
            raise PydanticCustomError("plugin_options", "invalid options", context) from error

    @model_serializer(mode="plain")
    def _flatten(self) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump(mode="json")}


class OracleChoice(PluginChoice):
    """An oracle and its options."""

    group = "oracles"


class GeneratorChoice(PluginChoice):
    """A generator and its options."""

    group = "generators"


class AgentChoice(PluginChoice):
    """An agent and its options."""

    group = "agents"


Choice = TypeVar("Choice", bound=PluginChoice)


class OracleConfig(_Settings):
    """The two oracles of a campaign."""

    screening: OracleChoice = Field(description="Cheap oracle that relaxes every admitted candidate.")
    reference: OracleChoice = Field(description="Expensive oracle whose hull gives the verdicts.")
    check: Literal["require", "warn", "skip"] = Field(
        default="require",
        description="Whether `discovery launch` refuses oracles that fail their check, warns of them, or does not ask.",
    )


class BudgetConfig(_Settings):
    """What a campaign may spend; it stops as soon as one limit is reached."""

    reference_calls: int | None = Field(default=None, ge=0, description="Reference calculations of candidates.")
    core_hours: float | None = Field(default=None, ge=0, description="Core-hours of all oracles together.")
    gpu_hours: float | None = Field(default=None, ge=0, description="GPU-hours of all oracles together.")
    wall_hours: float | None = Field(default=None, ge=0, description="Wall time of the driver in hours.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if not self.limits:
            raise PydanticCustomError(
                "no_budget",
                "a campaign needs a stopping rule: set reference_calls, core_hours, gpu_hours or wall_hours",
            )
        return self

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, kind → amount, as :class:`discovery.types.Budget` takes them."""
        return {kind: float(amount) for kind, amount in self if amount is not None}


class SearchConfig(_Settings):
    """What is searched, how long and by which thresholds it is judged."""

    chemical_space: str = Field(description="Elements to search, joined by hyphens: Mg-Si-Ge.")
    rounds: int = Field(default=3, ge=1, description="Rounds of propose, sample, screen, compute and learn.")
    targets_per_round: int = Field(default=8, ge=1, description="Compositions that the agent asks for in a round.")
    samples_per_target: int = Field(default=8, ge=1, description="Crystals sampled for each target.")
    max_atoms: int = Field(default=12, ge=1, description="Largest number of atoms in a sampled cell.")
    reference_calls_per_round: int = Field(default=4, ge=0, description="Reference calculations in a round, at most.")
    stable_threshold: float = Field(
        default=1e-3, ge=0, description="Stable up to this e_above_hull, eV/atom; covers numerical noise only."
    )
    metastable_threshold: float = Field(default=0.1, ge=0, description="Metastable up to this e_above_hull, eV/atom.")
    learn: bool = Field(default=True, description="Whether the generator learns from what turned out stable.")
    min_new_crystals: int = Field(default=1, ge=1, description="Stable crystals not yet learned that start a learning.")
    deterministic: bool = Field(
        default=True,
        description="Rounds one after the other, whose result depends on the seed alone; false keeps all workers busy.",
    )
    max_screened: int = Field(
        default=1000, ge=1, description="Candidates that may wait for selection; the worst beyond are passed over."
    )
    max_discoveries: int | None = Field(default=None, ge=1, description="Stable phases after which the search ends.")
    patience: int | None = Field(
        default=None, ge=1, description="Rounds without a new stable phase after which the search ends."
    )
    budget: BudgetConfig = Field(description="What may be spent; at least one limit.")

    @property
    def elements(self) -> tuple[str, ...]:
        """Element symbols of the chemical space, in the order given."""
        return tuple(self.chemical_space.split("-"))

    @field_validator("chemical_space", mode="after")
    @classmethod
    def _elements_exist(cls, value: str) -> str:
        symbols = [symbol.strip() for symbol in value.split("-") if symbol.strip()]
        if not symbols:
            raise PydanticCustomError("elements", "no element given; write element symbols such as Mg-Si-Ge")
        known = [Element.from_Z(z).symbol for z in range(1, 119)]
        for symbol in symbols:
            if symbol not in known:
                near = plugins.nearest(symbol.capitalize(), known)
                reason = f"{symbol!r} is not an element" + (f"; did you mean {near!r}?" if near else "")
                raise PydanticCustomError("elements", "{reason}", {"reason": reason})
            if symbols.count(symbol) > 1:
                raise PydanticCustomError("elements", "{symbol} stands twice", {"symbol": symbol})
        return "-".join(symbols)

    @model_validator(mode="after")
    def _thresholds_are_ordered(self) -> Self:
        if self.metastable_threshold < self.stable_threshold:
            raise PydanticCustomError("thresholds", "metastable_threshold is smaller than stable_threshold")
        return self


class ExecutorConfig(_Settings):
    """Where the work runs."""

    name: Literal["ray", "in_process"] = Field(default="ray", description="Ray, or one process for debugging.")
    address: str | None = Field(default=None, description="Address of a running Ray cluster; unset starts one here.")
    generator_cores: int = Field(default=0, ge=0, description="Cores the generator holds, in Ray's books.")
    generator_gpus: float | None = Field(default=None, ge=0, description="Its GPUs; unset takes an even share.")
    generator_resources: dict[str, float] = Field(default={}, description="Its custom Ray resources, name: amount.")
    screening_workers: int = Field(default=2, ge=1, description="Actors that keep the screening oracle loaded.")
    screening_cores: int = Field(default=0, ge=0, description="Cores each of them holds, in Ray's books.")
    screening_gpus: float | None = Field(default=None, ge=0, description="GPUs of each; unset takes an even share.")
    screening_resources: dict[str, float] = Field(default={}, description="Custom Ray resources of each.")
    screening_batch_atoms: int = Field(
        default=48, ge=1, description="Atoms in a batch; small ones are committed soon, and little is lost with one."
    )
    screening_max_seconds: float | None = Field(default=None, gt=0, description="Time limit of one screening.")
    reference_workers: int = Field(default=1, ge=1, description="Reference calculations that run at the same time.")
    reference_cores: int = Field(default=1, ge=1, description="Cores held by one reference calculation.")
    reference_gpus: float = Field(default=0.0, ge=0, description="GPUs held by one reference calculation.")
    reference_resources: dict[str, float] = Field(
        default={}, description="Custom Ray resources of one, for nodes that have a licence or MPI."
    )
    reference_max_seconds: float | None = Field(
        default=None, gt=0, description="Time limit of a reference calculation; begun only where it can end in time."
    )
    max_lost: int = Field(default=3, ge=0, description="Repetitions of work whose worker or node was lost.")
    max_failed: int = Field(
        default=0, ge=0, description="Repetitions of calculations that crashed, ran out of memory or took too long."
    )
    ends_at: datetime | None = Field(
        default=None, description="When the machines will be gone: ISO time, or seconds since the epoch."
    )
    reference_cache: bool = Field(
        default=True,
        description="Use evaluations of reference phases that earlier campaigns left in the user's cache folder.",
    )


class LogConfig(_Settings):
    """What ``campaign.log`` in the run folder holds."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least level of a line: info has every event, debug also what libraries tell, warning failures.",
    )
    max_megabytes: float = Field(default=50.0, ge=0.01, description="Size at which a new file is begun, MB.")
    files: int = Field(default=5, ge=2, description="Files that are kept, the newest included.")


_WHERE: dict[str, Any] = {"run_dir": True, "executor": True, "database": True, "log": True, "oracle": {"check"}}
"""Settings that say where a campaign runs, what it tells and how its oracles are checked, not what comes out."""


class CampaignConfig(_Settings):
    """The whole configuration of a campaign; what the run folder's ``config.yaml`` holds."""

    name: str = Field(min_length=1, description="Name of the campaign.")
    seed: int = Field(default=0, ge=0, description="Seed of all randomness.")
    run_dir: Path = Field(description="Folder that the campaign writes.")
    campaign: SearchConfig = Field(description="What is searched, how long and by which thresholds.")
    oracle: OracleConfig = Field(description="The screening and the reference oracle.")
    generator: GeneratorChoice = Field(description="The generator and its options.")
    agent: AgentChoice = Field(description="The agent and its options.")
    references: ReferencesConfig = Field(
        default_factory=ReferencesConfig, description="Where the reference phases come from."
    )
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig, description="Where the work runs.")
    database: str | None = Field(
        default=None,
        description="URL of a PostgreSQL database, without password; unset keeps a SQLite file in the run folder.",
    )

    log: LogConfig = Field(default_factory=LogConfig, description="What the log holds.")

    @field_validator("database", mode="after")
    @classmethod
    def _database_is_understood(cls, value: str | None) -> str | None:
        try:
            return parse_setting(value) if value is not None else None
        except ValueError as error:
            raise PydanticCustomError("database", "{reason}", {"reason": str(error)}) from error

    @property
    def config_hash(self) -> str:
        """SHA-256 of everything that can change a result; `_WHERE` cannot."""
        data = self.model_dump(mode="json", exclude=_WHERE)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the configuration as YAML, readable by :func:`read`."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def compose(campaign: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> CampaignConfig:
    """Compose and validate the configuration of a campaign.

    Later layers win: ``config.yaml``, the chosen oracles, generator and agent, the campaign's file, the overrides.

    Parameters
    ----------
    campaign
        Name of a file in ``campaign/`` (``quickstart``), or the path of a YAML file.
    overrides
        ``key=value`` with dots (``campaign.rounds=2``), or a choice: ``oracle/screening=emt``,
        ``oracle/reference=emt``, ``generator=random_search``, ``agent=random``.
    config_dir
        The user's own folder of configurations; its files stand beside the shipped ones and replace those of the
        same name.

    Raises
    ------
    ConfigError
        Naming the key, the file it stands in (or the command line) and the nearest valid key or value.
    """
    files = _config_files(config_dir)
    path = Path(campaign)
    name = path.stem if path.suffix in _YAML else campaign
    if path.suffix in _YAML:
        files[f"campaign/{name}"] = path
    _check_choice("campaign", name, files, COMMAND_LINE)
    contents = {key: _read_yaml(file) for key, file in files.items()}
    given = [_parse_override(text, files) for text in overrides]
    data, layers = _compose_files(files, [f"campaign@_global_='{name}'", *(override.text for override in given)])
    sources = _Sources(
        command_line=tuple(override.sets for override in given if override.sets),
        layers=tuple((files[key], package, contents[key]) for key, package in layers if key in files),
        campaign_file=files[f"campaign/{name}"],
    )
    data.setdefault("name", name)
    for key, value in _leaves(data):
        _refuse_code(key, value, sources.of(key))
    return _validate(_resolve(data, sources), sources)


def campaign_file(campaign: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> str:
    """Return the text of a campaign file that composes as `campaign` with `overrides` does.

    Raises
    ------
    ConfigError
        As :func:`compose` does.
    """
    compose(campaign, overrides, config_dir)
    path = Path(campaign)
    file = path if path.suffix in _YAML else _config_files(config_dir)[f"campaign/{campaign}"]
    content = _read_yaml(file)
    defaults = content.pop("defaults", [])
    others = [entry for entry in defaults if not _is_choice(entry)]
    chosen = {
        key.removeprefix("override /"): name for entry in defaults if _is_choice(entry) for key, name in entry.items()
    }
    settings = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in {*_CHOICES, *_CHOICES.values()}:
            chosen[_CHOICES.get(key, key)] = value
        else:
            settings.append(text)
    merged = OmegaConf.to_container(OmegaConf.merge(content, _from_dotlist(settings)), resolve=False)
    assert isinstance(merged, dict)  # noqa: S101
    choices = [{f"override /{key}": name} for key, name in sorted(chosen.items())]
    return yaml.safe_dump({"defaults": [*others, *choices], **merged}, sort_keys=False, allow_unicode=True)


def _is_choice(entry: Any) -> bool:
    return isinstance(entry, Mapping) and all(str(key).startswith("override /") for key in entry)


def read(path: Path) -> CampaignConfig:
    """Read a configuration that :meth:`CampaignConfig.save` wrote.

    Raises
    ------
    ConfigError
        Naming the file, the key and the cause.
    """
    content = _read_yaml(path)
    return _validate(content, _Sources((), ((path, "", content),), path))


def compose_oracle(name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> OracleChoice:
    """Return the oracle that ``oracle/NAME.yaml`` and overrides of its own options (``fmax=0.02``) describe."""
    return compose_choice(OracleChoice, name, overrides, config_dir)


def compose_choice(
    kind: type[Choice], name: str, overrides: Sequence[str] = (), config_dir: Path | None = None
) -> Choice:
    """Return the oracle, generator or agent that its file (``agent/NAME.yaml``) and overrides of its options describe.

    Raises
    ------
    ConfigError
        Naming the key, the file it stands in (or the command line) and the nearest valid key or value.
    """
    group = kind.group.removesuffix("s")
    files = _config_files(config_dir)
    _check_choice(group, name, files, COMMAND_LINE)
    file = files[f"{group}/{name}"]
    content = _read_yaml(file)
    given = _from_dotlist(overrides)
    sources = _Sources(tuple(text.partition("=")[0] for text in overrides), ((file, "", content),), file)
    try:
        return kind.model_validate(OmegaConf.to_container(OmegaConf.merge(content, given), resolve=False))
    except ValidationError as error:
        lines = [_explain(details, kind, (), sources) for details in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def parse_options(model: type[Options], overrides: Sequence[str], file: Path | None = None) -> Options:
    """Return the options of a plug-in given on the command line as ``key=value``, with dots for nested keys.

    They win over those in `file`, which is YAML.

    Raises
    ------
    ConfigError
        Naming the key, what is wrong and the nearest valid key.
    """
    given = _from_dotlist(overrides)
    content = {} if file is None else _read_yaml(file)
    sources = _Sources(tuple(text.partition("=")[0] for text in overrides), (), file or Path(COMMAND_LINE))
    try:
        return model.model_validate(OmegaConf.to_container(OmegaConf.merge(content, given), resolve=False))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(details, model, (), sources) for details in error.errors())) from error


def _from_dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        if not text.partition("=")[1]:
            raise ConfigError(f"{text!r} ({COMMAND_LINE}): write key=value, for example steps=50")
    try:
        data = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(overrides)} ({COMMAND_LINE}): {error}") from error
    return cast("dict[str, Any]", data)


@dataclass(frozen=True)
class _Sources:
    """Where each key was set, for error messages; later layers win."""

    command_line: tuple[str, ...]
    layers: tuple[tuple[Path, str, Mapping[str, Any]], ...]
    campaign_file: Path

    def of(self, key: str) -> str:
        if any(_is_within(key, given) or _is_within(given, key) for given in self.command_line):
            return COMMAND_LINE
        for file, package, content in reversed(self.layers):
            inner = key.removeprefix(package).lstrip(".") if _is_within(key, package) else None
            if inner and _contains(content, inner.split(".")):
                return str(file)
        return str(self.campaign_file)


@dataclass(frozen=True)
class _Override:
    """An override in Hydra's own form, and the key that it sets; None for the choice of a file."""

    text: str
    sets: str | None


def _is_within(key: str, parent: str) -> bool:
    return not parent or key == parent or key.startswith(parent + ".")


def _contains(content: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True


def _config_files(config_dir: Path | None) -> dict[str, Path]:
    """Return Hydra's name of each configuration (``oracle/emt``) → its file; the user's folder wins."""
    folders = [Path(str(resources.files("configs")))]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"the configuration folder {config_dir} does not exist")
        folders.append(config_dir)
    return {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in folders
        for file in [*folder.glob("config.yaml"), *(f for group in _GROUPS for f in folder.glob(f"{group}/*.yaml"))]
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with Hydra's own loader, and refuse whatever is more than data."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(content).__name__}")
    if "hydra" in content:
        raise ConfigError(f"{path}: unknown key 'hydra'; Hydra itself is not configurable here, remove it")
    for key, value in _leaves(content):
        _refuse_code(key, value, str(path))
    return {str(key): value for key, value in content.items()}


def _refuse_code(key: str, value: Any, source: str) -> None:
    if "_target_" in key.split("."):
        raise ConfigError(f"{key} ({source}): a configuration cannot name code to run; remove '_target_'")
    if isinstance(value, str) and "${" in re.sub(r"\$\{[\w.]+\}", "", value):
        raise ConfigError(
            f"{key} ({source}): {value!r} is not allowed; only references to other keys such as ${{name}} are,"
            " no resolvers and no environment variables"
        )


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping | list):
        items = data.items() if isinstance(data, Mapping) else enumerate(data)
        for key, value in items:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _parse_override(text: str, files: Mapping[str, Path]) -> _Override:
    form = "write key=value, for example campaign.rounds=2 or oracle/screening=emt"
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{text!r} ({COMMAND_LINE}): {reason}; {form}, quote special signs") from error
    if not parsed.key_or_group:
        raise ConfigError(f"{text!r} ({COMMAND_LINE}): names no key; {form}")
    if parsed.type is not OverrideType.CHANGE:
        raise ConfigError(f"{text!r} ({COMMAND_LINE}): keys can only be set, not added or deleted; {form}")
    if parsed.is_sweep_override():
        raise ConfigError(f"{text!r} ({COMMAND_LINE}): one campaign has one value per key; {form}")
    key = parsed.key_or_group if parsed.package is None else f"{parsed.key_or_group}@{parsed.package}"
    hydra_key = _CHOICES.get(key, key)
    value = parsed.value()
    if hydra_key in _CHOICES.values() and not isinstance(value, dict):
        _check_choice(hydra_key.partition("@")[0], str(value), files, f"{key} ({COMMAND_LINE})")
        return _Override(f"{hydra_key}={text.partition('=')[2]}", None)
    if key == "campaign":
        raise ConfigError(
            f"{text!r} ({COMMAND_LINE}): the campaign is the first argument, its settings are campaign.KEY"
        )
    if key == "oracle" or "/" in key or "@" in key:
        raise ConfigError(f"{key} ({COMMAND_LINE}): unknown choice; {plugins.suggest(key, list(_CHOICES))}")
    if (root := key.partition(".")[0]) not in CampaignConfig.model_fields:
        hint = plugins.suggest(root, list(CampaignConfig.model_fields))
        raise ConfigError(f"{key} ({COMMAND_LINE}): unknown key; {hint}")
    return _Override(f"++{text}", key)


def _check_choice(group: str, name: str, files: Mapping[str, Path], where: str) -> None:
    if f"{group}/{name}" not in files:
        known = sorted(key.partition("/")[2] for key in files if key.startswith(f"{group}/"))
        raise ConfigError(f"{where}: there is no configuration {group}/{name}.yaml; {plugins.suggest(name, known)}")


def _compose_files(files: Mapping[str, Path], overrides: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Let Hydra compose; return the unresolved result and the (name, package) of each file used, in merge order."""
    with tempfile.TemporaryDirectory() as folder:
        for key, file in files.items():
            copy = Path(folder, f"{key}.yaml")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        try:
            with initialize_config_dir(config_dir=folder, job_name="discovery", version_base="1.3"):
                composed = hydra_compose("config", list(overrides))
                loader = GlobalHydra.instance().config_loader()
                defaults = loader.compute_defaults_list("config", list(overrides), RunMode.RUN).defaults
        except MissingConfigException as error:
            group, _, name = (error.missing_cfg_file or "").partition("/")
            chosen_in = next((str(file) for file in files.values() if _chooses(file, name)), COMMAND_LINE)
            _check_choice(group, name, files, chosen_in)
            raise ConfigError(f"{chosen_in}: {_first_line(error)}") from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            message = re.sub(r"In '([^']+)'", lambda found: str(files.get(found[1], found[0])), _first_line(error))
            if unknown := re.search(r"Could not override '([^']+)'", message):
                message += f" {plugins.suggest(unknown[1], list(_CHOICES.values()))}"
            raise ConfigError(f"the configuration cannot be composed: {message}") from error
    data = OmegaConf.to_container(composed, resolve=False)
    return cast("dict[str, Any]", data), [
        (default.config_path, default.package or "") for default in defaults if default.config_path
    ]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or _first_line(error.__cause__ or RuntimeError("unknown cause"))


def _chooses(file: Path, name: str) -> bool:
    defaults = _read_yaml(file).get("defaults") or []
    return any(name in entry.values() if isinstance(entry, Mapping) else name == entry for entry in defaults)


def _resolve(data: Mapping[str, Any], sources: _Sources) -> dict[str, Any]:
    """Follow the references to other keys."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(data)), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or ""
        raise ConfigError(f"{key} ({sources.of(key)}): has no value yet; give one as {key}=VALUE") from error
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise ConfigError(f"{key} ({sources.of(key)}): {_first_line(error)}") from error
    return cast("dict[str, Any]", resolved)


def _validate(data: Mapping[str, Any], sources: _Sources) -> CampaignConfig:
    try:
        return CampaignConfig.model_validate(data)
    except ValidationError as error:
        lines = [_explain(details, CampaignConfig, (), sources) for details in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _explain(details: ErrorDetails, model: type[BaseModel], parents: tuple[str | int, ...], sources: _Sources) -> str:
    """Return one line per error: key, where it stands, what is wrong and what to write instead."""
    location, context = details["loc"], details.get("ctx", {})
    if details["type"] == "plugin_options":
        inner = (*parents, *location)
        return "\n".join(_explain(error, context["model"], inner, sources) for error in context["errors"])
    if details["type"] == "plugin_name":
        location = (*location, "name")
    key = ".".join(str(part) for part in (*parents, *location))
    fields = _fields_at(model, location[:-1])
    if details["type"] == "missing":
        about = fields.get(str(location[-1]))
        return f"{key}: missing ({about}); set it in {sources.campaign_file} or on the command line as {key}=VALUE"
    reason = details["msg"]
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        reason = f"unknown key; {plugins.suggest(str(location[-1]), list(fields))}"
    elif details["type"] == "literal_error":
        reason += f", got {details['input']!r}"
        near = plugins.nearest(str(details["input"]), re.findall(r"'([^']*)'", context["expected"]))
        reason += f"; did you mean {near!r}?" if near else ""
    elif isinstance(details["input"], str | int | float | None):
        reason += f" (got {masked(repr(details['input']))})" if details["type"] != "database" else ""
    return f"{key} ({sources.of(key)}): {reason}"


def _fields_at(model: type, location: Sequence[str | int]) -> Mapping[str, str | None]:
    """Return name → description of the fields of the model or dataclass found by following `location` from `model`."""
    for part in location:
        annotation = _annotations(model).get(str(part))
        inner = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and _annotations(a)), None)
        if inner is None:
            return {}
        model = inner
    if issubclass(model, BaseModel):
        return {name: field.description for name, field in model.model_fields.items()}
    return dict.fromkeys(_annotations(model))


def _annotations(model: type) -> Mapping[str, Any]:
    """Return name → type of the fields of a model or dataclass; none for other types."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    if dataclasses.is_dataclass(model):
        hints = get_type_hints(model)
        return {field.name: hints[field.name] for field in dataclasses.fields(model)}
    return {}
