"""A child process that never outlives its parent, and stops cleanly when told to."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie_to_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Has the kernel send ``number`` to this process when its parent ends, however it ends.

    ``parent`` is the pid that started us; if it is gone already, we end here.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        raise SystemExit(1)


def be_nice(niceness: int) -> None:
    """Lowers this process's claim to the cores, from 0 (none given up) to 19.

    Most kernels share the cores out between sessions first (autogroup), and niceness counts only within one. All
    processes of a fleet stay in one session, so a prefill worker gives way to decode, and not to other programs.
    """
    os.nice(niceness)


def give_back_memory() -> bool:
    """Has the allocator return what it keeps of freed memory, where it can; always True."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return True


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
