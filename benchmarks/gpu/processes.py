"""Processes with a time limit, which are ended together with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO

_running: set[int] = set()  # process groups


def execute(
    command: Sequence[str],
    seconds: float,
    output: IO,
    *,
    ask: int = signal.SIGTERM,
    patience: float = 8.0,
    **options,
) -> int | None:
    """Runs a command. Returns its exit status, or None if it ran out of time.

    On a timeout or an interrupt of the caller, the process gets the signal ``ask`` and ``patience``
    seconds to clean up, including any processes that it started in other groups. Then its group is
    killed.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )
    _running.add(process.pid)
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        _end(process, ask, patience)
        return None
    except BaseException:
        _end(process, ask, patience)
        raise
    finally:
        _kill(process.pid)
        process.wait()
        _running.discard(process.pid)


def _end(process: subprocess.Popen, ask: int, patience: float) -> None:
    process.send_signal(ask)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)


def end_all() -> None:
    """Kills everything that is running. For a process that is itself told to end."""
    for group in list(_running):
        _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
