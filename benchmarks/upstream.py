# SPDX-License-Identifier: Apache-2.0
"""Single modules out of somebody else's checkout, without running their packages.

``STC_UPSTREAM_<NAME>`` names a folder with the project's files. A module is loaded from its file;
the packages above it are empty, so that what their ``__init__`` would import is not needed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers


class NotAtHandError(RuntimeError):
    """A project's files are not there, or do not run on the transformers that is."""


def checkout(name: str, needs: Sequence[str] = ()) -> Path:
    """Return the folder of a project.

    ``needs`` lists the beginnings of the versions of transformers that its files run on.
    """
    variable = f"STC_UPSTREAM_{name}"
    folder = os.environ.get(variable)
    if not folder:
        raise NotAtHandError(f"{variable} names no folder with the files of {name}")
    found = transformers.__version__
    if needs and not found.startswith(tuple(needs)):
        raise NotAtHandError(
            f"the files of {name} run on transformers {', '.join(needs)}; found {found}"
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{variable}: {folder} is no folder")
    return Path(folder)


@dataclass
class Source(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of one top-level package in a folder.

    Attributes
    ----------
    folder
        Where the package lies.
    package
        Its name.
    run_init
        Packages whose ``__init__`` is run after all.
    replace
        Text to replace in each module, for what needs a GPU or registers things for good.
    names
        What each module finds among its globals.
    stubs
        Attributes of modules that take the place of real ones.
    """

    folder: Path
    package: str
    run_init: frozenset[str] = frozenset()
    replace: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, Any] = field(default_factory=dict)
    stubs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Say whether the module is one of ours (the protocol of finders)."""
        if name in self.stubs:
            inside = any(stub.startswith(f"{name}.") for stub in self.stubs)
            return importlib.util.spec_from_loader(name, self, is_package=inside)
        if name.split(".")[0] != self.package:
            return None
        place = self.folder.joinpath(*name.split("."))
        if place.with_suffix(".py").is_file():
            return importlib.util.spec_from_loader(name, self)
        if place.is_dir():
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill a module (the protocol of loaders)."""
        name = module.__name__
        if name in self.stubs:
            vars(module).update(self.stubs[name])
            return
        place = self.folder.joinpath(*name.split("."))
        file = place.with_suffix(".py")
        if not file.is_file():
            if name not in self.run_init:
                return
            file = place / "__init__.py"
        text = file.read_text()
        for old, new in self.replace.items():
            text = text.replace(old, new)
        vars(module).update(self.names, __file__=str(file))
        exec(compile(text, str(file), "exec"), vars(module))

    @contextmanager
    def importable(self) -> Iterator[Source]:
        """Inside the block the modules can be imported; afterwards none of them is left."""
        ours = {self.package, *self.stubs}
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if self._is_ours(n, ours)}
        sys.meta_path.insert(0, self)
        try:
            yield self
        finally:
            sys.meta_path.remove(self)
            for name in [n for n in sys.modules if self._is_ours(n, ours)]:
                del sys.modules[name]
            sys.modules.update(hidden)

    def _is_ours(self, name: str, ours: set[str]) -> bool:
        return name in ours or name.split(".")[0] == self.package

    def load(self, name: str) -> types.ModuleType:
        """Import one module."""
        return importlib.import_module(name)
