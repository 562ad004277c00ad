"""Name -> class, filled by scanning a package: no list to keep by hand."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that nothing is registered under; the message lists the nearest one and all others."""


class Registry(Mapping[str, type[T]], Generic[T]):
    """The classes of one kind, by name.

    A module of ``package`` registers its class with ``@registry.register("name")``; the package is imported
    as a whole on first look-up, so a new file is found without touching any other.

    Args:
        kind: what the entries are, as it should read in an error message ("loss", "source").
        package: dotted name of the package whose modules hold the classes.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[T]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files the class under ``name``; a name taken twice is an error."""

        def add(cls: type[T]) -> type[T]:
            taken = self._classes.get(name)
            if taken is not None and taken.__module__ != cls.__module__:
                raise ValueError(f"{self.kind} {name!r} is defined in {taken.__module__} and in {cls.__module__}")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        self._scan()
        try:
            return self._classes[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._classes, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{hint} (there are: {', '.join(sorted(self._classes))})"
            ) from None

    def __iter__(self) -> Iterator[str]:
        self._scan()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._scan()
        return len(self._classes)

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
