"""Measurement, verification and display for the command line. The losses do not use it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class MissingExtraError(ImportError):
    """A package of the ``report`` extra is not installed."""


def optional(name: str) -> ModuleType:
    """Imports a package that only the reports need.

    Raises:
        MissingExtraError: if it is not installed; the message contains the command to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f'this needs {package}, which is not installed: pip install "lossops[report]"'
        ) from error


class _Numpy:
    """numpy, imported when first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(optional("numpy"), name)


numpy = _Numpy()
