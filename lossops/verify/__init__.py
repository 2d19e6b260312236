"""What the command line measures, checks and shows. No part of the library's own path."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package of the ``report`` extra is not installed."""


def optional(name: str) -> ModuleType:
    """Imports a package that only the reports need.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f'this needs {package}, which is not installed: pip install "lossops[report]"'
        ) from error
