"""How a space is drawn from: at random, as a grid, or by Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmlscale.launch.errors import LaunchError
from dmlscale.losses.search_space import Integer, LogUniform, Uniform
from dmlscale.tuning.outcomes import Scalar
from dmlscale.tuning.space import Space

if TYPE_CHECKING:
    import optuna

Draw = tuple[dict[str, Any], dict[str, Scalar]]


@dataclass(frozen=True)
class RandomChooser:
    """Independent draws: each value follows from (seed, number, name) alone, whatever else is searched.

    Args:
        seed: of the sweep, not negative.
        number: of the draw.
    """

    seed: int
    number: int

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        """See `Chooser`."""
        return values[int(self._generator(name).integers(len(values)))]

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        """See `Chooser`."""
        if log:
            return self._ratio(name, low, high, low, high)
        return float(self._generator(name).uniform(low, high))

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        """See `Chooser`."""
        if log:  # half a step more on either side, so that the ends are not half as likely
            return round(self._ratio(name, low - 0.5, high + 0.5, low, high))
        return int(self._generator(name).integers(low, high, endpoint=True))

    def _ratio(self, name: str, start: float, end: float, low: float, high: float) -> float:
        value = math.exp(self._generator(name).uniform(math.log(start), math.log(end)))
        return float(min(max(value, low), high))  # exp and log round

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, *name.encode()])


@dataclass(frozen=True)
class OptunaChooser:
    """Draws by an Optuna sampler.

    Args:
        trial: asked for each value; Ray hands in a stand-in for it that has its `suggest_` methods.
    """

    trial: optuna.Trial

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        """See `Chooser`."""
        if all(isinstance(value, Scalar) for value in values):
            return self.trial.suggest_categorical(name, values)
        # Optuna stores scalars alone.
        return values[self.trial.suggest_categorical(name, range(len(values)))]

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        """See `Chooser`."""
        return self.trial.suggest_float(name, low, high, log=log)

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        """See `Chooser`."""
        return self.trial.suggest_int(name, low, high, log=log)


class _GridChooser:
    """Repeats the places of a path, then takes the first value of whatever else it is asked for."""

    def __init__(self, path: Sequence[int]) -> None:
        self._path = list(path)
        self._sizes: list[int] = []

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        if len(self._sizes) == len(self._path):
            self._path.append(0)
        self._sizes.append(len(values))
        return values[self._path[len(self._sizes) - 1]]

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        raise AssertionError(f"{name}: refused before the first draw")

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return int(self.choice(name, range(low, high + 1)))

    def next_path(self) -> list[int] | None:
        """The path of the next combination: one more at the last place that has more; what follows starts anew."""
        for place in reversed(range(len(self._sizes))):
            if self._path[place] + 1 < self._sizes[place]:
                return [*self._path[:place], self._path[place] + 1]
        return None


def grid(space: Space, base: Mapping[str, Any]) -> Iterator[Draw]:
    """All combinations of a space, keys where their conditions hold; the last key changes fastest.

    Args:
        space: of choices and whole numbers without log.
        base: nested config values.

    Yields:
        Config values and what was drawn, as `Space.settings`.

    Raises:
        LaunchError: a range has no end of values; with every such key in it.
    """
    errors = []
    for parameter in space.parameters:
        searched = parameter.range
        if isinstance(searched, Uniform | LogUniform) or (isinstance(searched, Integer) and searched.log):
            whose = f" of {', '.join(map(str, parameter.when.get('losses.name', ['the loss'])))}"
            errors.append(
                f"{parameter.key}{whose * parameter.is_default}: is {searched}; a grid needs its values, "
                f"as {parameter.key}: {{choice: [{searched.low}, {searched.high}]}}"
            )
    if errors:
        raise LaunchError("space:\n" + "\n".join(f"  {error}" for error in errors))
    path: list[int] | None = []
    while path is not None:
        chooser = _GridChooser(path)
        yield space.settings(chooser, base)
        path = chooser.next_path()


def grid_draws(space: Space, base: Mapping[str, Any]) -> list[Draw]:
    """All combinations of a space; see `grid`."""
    return list(grid(space, base))


def random_draws(space: Space, base: Mapping[str, Any], num: int, seed: int) -> list[Draw]:
    """Independent draws from a space.

    Args:
        space: drawn from.
        base: nested config values.
        num: how many; the first ones of a larger number are the same.
        seed: not negative.

    Returns:
        Config values and what was drawn, as `Space.settings`, of each.

    Raises:
        LaunchError: see `Space.settings`.
    """
    return [space.settings(RandomChooser(seed, number), base) for number in range(num)]


@dataclass(frozen=True)
class OptunaSpace:
    """A space as Ray's OptunaSearch takes it: called with a trial, it draws. It can be pickled with the search's state.

    Args:
        space: drawn from.
        base: nested config values.
    """

    space: Space
    base: Mapping[str, Any]

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draws for one trial.

        Returns:
            `{"values": config values, "drawn": what was drawn}`. Ray adds them to the trial's config, in which each
            of Optuna's own parameters (`triplet.margin`) stands too.
        """
        values, drawn = self.space.settings(OptunaChooser(trial), self.base)
        return {"values": values, "drawn": drawn}


def optuna_space(space: Space, base: Mapping[str, Any]) -> OptunaSpace:
    """A space for Ray's OptunaSearch, checked against the base config.

    Raises:
        LaunchError: see `Space.check`.
    """
    space.check(base)
    return OptunaSpace(space, base)
