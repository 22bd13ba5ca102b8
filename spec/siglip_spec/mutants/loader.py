"""Running a known bug: a private copy of the reference, made from edited sources.

Its modules import each other through an import function of their own and stand nowhere in
`sys.modules`, so whoever uses `siglip_ref` in the same process never meets them.
"""

import builtins
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import chain
from types import CodeType, ModuleType
from typing import Any

from siglip_spec.mutants.mutant import Edit, Mutant

_COPIED = ("siglip_ref", "siglip_spec.operations")
_EMPTY = [("siglip_spec", "")]
"""The package around the copied operations: of it they use nothing else."""


@cache
def load(mutant: Mutant) -> ModuleType:
    """The package `siglip_spec.operations` as it is with this bug.

    Raises ValueError if an edit does not apply.
    """
    edited: dict[str, str] = {}
    for edit in mutant.edits:
        source = edited.get(edit.module, sources()[edit.module])
        try:
            edited[edit.module] = applied(edit, source)
        except ValueError as error:
            raise ValueError(f"{mutant.flag}: {error}") from error
    return _Copy(edited).module("siglip_spec.operations")


def applied(edit: Edit, source: str) -> str:
    """The source after the edit.

    Raises ValueError unless `edit.old` stands in it once.
    """
    first_line = edit.old.split("\n", 1)[0]
    places = []
    for match in re.finditer(re.escape(first_line), source):
        line = source[source.rfind("\n", 0, match.start()) + 1 :]
        newline = "\n" + line[: len(line) - len(line.lstrip(" "))]
        old, new = (text.replace("\n", newline) for text in (edit.old, edit.new))
        if source.startswith(old, match.start()):
            places.append((match.start(), old, new))
    if len(places) != 1:
        raise ValueError(
            f"an edit must find its text once in {edit.module}, "
            f"found it {len(places)} times: {first_line!r}"
        )
    ((start, old, new),) = places
    return source[:start] + new + source[start + len(old) :]


@cache
def sources() -> Mapping[str, str]:
    """The source of every module that is copied, by its name."""
    return dict(chain(_EMPTY, *(_sources_in(files(package), package) for package in _COPIED)))


def _sources_in(folder: Traversable, package: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        stem, _, suffix = entry.name.partition(".")
        if entry.name == "__init__.py":
            yield package, entry.read_text("utf-8")
        elif suffix == "py":
            yield f"{package}.{stem}", entry.read_text("utf-8")
        elif entry.is_dir() and entry.joinpath("__init__.py").is_file():
            yield from _sources_in(entry, f"{package}.{entry.name}")


@cache
def _code(name: str, source: str) -> CodeType:
    return compile(source, f"<{name} of a known bug>", "exec", dont_inherit=True)


class _Copy:
    """A graph of modules beside `sys.modules`; those not copied are everybody's."""

    def __init__(self, edited: Mapping[str, str]) -> None:
        self._sources = ChainMap(dict(edited), dict(sources()))
        self._modules: dict[str, ModuleType] = {}

    def module(self, name: str) -> ModuleType:
        """The copy of this module, after those of the packages around it."""
        package, _, child = name.rpartition(".")
        if package:
            self.module(package)
        if name in self._modules:
            return self._modules[name]
        module = self._modules[name] = ModuleType(name)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(_code(name, self._sources[name]), vars(module))
        if package:
            setattr(self._modules[package], child, module)
        return module

    def _import(
        self,
        name: str,
        importer: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What `__import__` is to the copied modules."""
        if level:
            raise ImportError(f"the copied modules import by full names, got a relative {name!r}")
        if name not in self._sources:
            return builtins.__import__(name, importer, local, names or ())
        module = self.module(name)
        if not names:
            return self.module(name.partition(".")[0])
        for child in names:
            if not hasattr(module, child) and f"{name}.{child}" in self._sources:
                self.module(f"{name}.{child}")
        return module
