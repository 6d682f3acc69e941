"""Stands where torchvision is wanted by an import alone: every name is there, nothing works.

Copied by `install_cpu.py` to `torchvision/__init__.py` of the servers' environment: the wheels that
an index offers are for CUDA and do not load beside a torch for the CPU, and text needs none of it.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0"
__path__ = []


class Named(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class Anything(types.ModuleType):
    """A module that has every class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below this one."""

    def find_spec(self, name, path=None, target=None):
        below = name.startswith(f"{__name__}.")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if below else None

    def create_module(self, spec):
        module = Anything(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        """There is nothing in it."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return importlib.import_module(f"{__name__}.{name}")


sys.meta_path.insert(0, Finder())
