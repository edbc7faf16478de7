"""Search spaces: which settings are fixed, which are searched, over which values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial
from pydantic import Field, model_validator

from smallm.errors import SmallmError, unknown_name
from smallm.settings import (
    CorpusSettings,
    Group,
    Settings,
    TokenizerSettings,
    fields,
    groups_of_fields,
    read_yaml,
    shape_of,
    validated,
)

Value = str | bool | int | float | None

ALIKE = {
    **dict.fromkeys(CorpusSettings.model_fields, "read one text"),
    "training_tokens": "have one budget",
    "evaluate_at": "are scored at the same shares of the budget",
    "evaluation_bytes": "are scored on the same text",
}
"""Settings in which trials that differ could not be compared: what is the same for all of them."""


class Searched(Group):
    """A setting that trials differ in."""

    when: dict[str, Value] = Field(default_factory=dict)
    """Searched only where these settings, fixed or searched above it, have these values.

    A setting of the search has no value where it is not searched itself.
    """


class Choices(Searched):
    """One of several values."""

    choices: tuple[Value, ...] = Field(min_length=1)


class Range(Searched):
    """A number between two bounds, both included; whole when both bounds are."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _rising(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("needs low < high, and low > 0 where log is true")
        return self


class Space(Group):
    """A search: its settings, what is searched, how many trials, seeds and confirmations."""

    name: str
    description: str = ""
    trials: Annotated[int, Field(ge=1)] = 12
    """Number of configs."""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Replicates of every config."""
    confirmed: Annotated[int, Field(ge=1)] = 2
    """How many of the best configs are trained again with fresh seeds."""
    confirmation_seeds: tuple[int, ...] = (1042, 1043, 1044, 1045, 1046)
    """The fresh seeds: none of them may be a seed of the search."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """At every rung about one config in this many goes on."""
    settings: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Choices | Range] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _allowed_names(cls, given: Any) -> Any:
        """Before the values: a setting that is never searched need not have one of ours."""
        fixed, searched = (_names(given, part) for part in ("settings", "search"))
        for name in fixed + searched:
            if name not in groups_of_fields():
                raise ValueError(unknown_name("setting", name, groups_of_fields()))
            if name == "seeds":
                raise ValueError("seeds are replicates, never searched: set `seeds` of the space")
        for name in searched:
            if name in ALIKE:
                raise ValueError(f"search.{name}: all trials {ALIKE[name]}; fix it in `settings`")
        return given

    @model_validator(mode="after")
    def _fits_settings(self) -> Space:
        if set(self.seeds) & set(self.confirmation_seeds):
            raise ValueError("confirmation_seeds must be seeds that the search does not use")
        for name in TokenizerSettings.model_fields:
            if isinstance(self.search.get(name), Range):
                raise ValueError(f"search.{name}: tokenizers need `choices`, not a range")
        self._check_conditions()
        for name, values in self.search.items():
            for value in _extremes(values):
                self.config(self.default_point(self._needed(name) | {name: value}))
        return self

    def _check_conditions(self) -> None:
        above = set(groups_of_fields()) - set(self.search)
        for name, values in self.search.items():
            for needed, value in values.when.items():
                if needed not in above:
                    raise ValueError(
                        f"search.{name}.when names {needed!r}: must be a setting, fixed or "
                        "searched above it"
                    )
                if needed in self.search and value not in _values(self.search[needed]):
                    raise ValueError(
                        f"search.{name}.when: {needed} is never {value!r} in this space"
                    )
            above.add(name)

    def _needed(self, name: str) -> dict[str, Any]:
        """The values that other settings must have, for a setting to be searched."""
        needed: dict[str, Any] = {}
        for each, value in self.search[name].when.items():
            needed |= {each: value} | (self._needed(each) if each in self.search else {})
        return needed

    def _applies(self, name: str, point: Mapping[str, Any]) -> bool:
        """Whether a setting is searched where those above it have the values of a point."""
        fixed = {**{each: info.default for each, info in fields().items()}, **self.settings}
        known = {each: value for each, value in fixed.items() if each not in self.search}
        return self.search[name].when.items() <= {**known, **point}.items()

    def point(self, choose: Callable[[str, Choices | Range], Any]) -> dict[str, Any]:
        """The searched settings that apply to each other, each with a chosen value."""
        point: dict[str, Any] = {}
        for name, values in self.search.items():
            if self._applies(name, point):
                point[name] = choose(name, values)
        return point

    def config(self, point: dict[str, Any]) -> Settings:
        """The settings of a trial: defaults, the space's fixed ones, the searched ones."""
        return Settings.from_flat({**self.settings, **point, "seeds": self.seeds})

    def default_point(self, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """The searched settings at their defaults, moved into the space where outside.

        Those that are given have that value instead.
        """
        defaults = Settings.from_flat(self.settings).flat()

        def default(name: str, values: Choices | Range) -> Any:
            value = given.get(name, defaults[name])
            if isinstance(values, Choices):
                return value if value in values.choices else values.choices[0]
            if not isinstance(value, int | float):  # the default may be null
                return values.low
            return min(max(value, values.low), values.high)

        return self.point(default)

    def _points(self, *names: str) -> list[dict[str, Any]]:
        """Every point, of these settings and of those that decide where they are searched.

        Of a range both bounds.
        """
        points: list[dict[str, Any]] = [{}]
        deciding = self._deciding(names)
        for name in self.search:
            if name in deciding:
                points = [each for point in points for each in self._with(name, point)]
        return points

    def _with(self, name: str, point: dict[str, Any]) -> list[dict[str, Any]]:
        """A point with each value of one more setting; as it is where that does not apply."""
        if not self._applies(name, point):
            return [point]
        return [{**point, name: value} for value in _extremes(self.search[name])]

    def _deciding(self, names: Iterable[str]) -> set[str]:
        """Those of the settings that are searched, and all that they are searched under."""
        searched = {name for name in names if name in self.search}
        return searched.union(*(self._deciding(self.search[name].when) for name in searched))

    def heldout_ratios(self) -> list[float]:
        """Every split ratio that a trial may use; of a range both bounds."""
        fixed = Settings.from_flat(self.settings).training.split_ratio
        ratios = [float(point.get("split_ratio", fixed)) for point in self._points("split_ratio")]
        return list(dict.fromkeys(ratios))

    def largest_window(self) -> int:
        """The most tokens that a trial's model may look at, or its layers."""
        default = fields()["window"].default
        points = [{**self.settings, **point} for point in self._points("window", "preset")]
        return max(int({"window": default, **shape_of(each), **each}["window"]) for each in points)

    def tokenizers(self) -> list[TokenizerSettings]:
        """Every tokenizer that a trial may use."""
        fixed = Settings.from_flat(self.settings).tokens.model_dump()
        found = [
            validated(TokenizerSettings, {name: point.get(name, fixed[name]) for name in fixed})
            for point in self._points(*fixed)
        ]
        return list(dict.fromkeys(found))

    def distributions(self) -> dict[str, BaseDistribution]:
        """The searched settings as Optuna samples them."""
        return {name: _distribution(values) for name, values in self.search.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The point that Optuna suggests for a trial."""

        def suggested(name: str, values: Choices | Range) -> Any:
            if isinstance(values, Choices):
                return trial.suggest_categorical(name, values.choices)
            if isinstance(values.low, int) and isinstance(values.high, int):
                return trial.suggest_int(name, values.low, values.high, log=values.log)
            return trial.suggest_float(name, values.low, values.high, log=values.log)

        return self.point(suggested)


def load_space(name: str) -> Space:
    """A space that ships with SmaLLM, by name, or a YAML file, by path."""
    shipped = {
        Path(entry.name).stem: entry
        for entry in resources.files("smallm.spaces").iterdir()
        if entry.name.endswith(".yaml")
    }
    if name in shipped:
        with resources.as_file(shipped[name]) as path:
            content = read_yaml(path)
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).exists():
        content = read_yaml(Path(name))
    else:
        raise SmallmError(f"{unknown_name('space', name, shipped)}; or the path of a YAML file")
    space: Space = validated(Space, {"name": Path(name).stem, **content})
    return space


def _names(given: Any, part: str) -> list[Any]:
    """The names in a part of a space, before anything is known of its form."""
    found = given.get(part) if isinstance(given, Mapping) else None
    return list(found) if isinstance(found, Mapping) else []


def _values(values: Choices | Range) -> tuple[Value, ...]:
    return values.choices if isinstance(values, Choices) else ()


def _extremes(values: Choices | Range) -> list[Any]:
    return list(values.choices) if isinstance(values, Choices) else [values.low, values.high]


def _distribution(values: Choices | Range) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.choices)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
