"""The child process: llama-server from the wheel ``xllamacpp``, or any ``llama-server`` binary.

Started as ``python -m diptych.engines.llamacpp.host`` with a JSON object on standard input. It dies with the
process that started it. Standard output and error go wherever the parent points them (a log file); the
address goes, as one line, to the file descriptor that the object names. It imports nothing heavy, for
start-up counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
WARNINGS = 2
LOG_DELAY_S = 0.5
"""llama.cpp's log is written by a thread of its own, and an exit does not wait for it."""


def main() -> None:
    orders = json.load(sys.stdin)
    die_with(orders["parent"])
    if orders["cpus"]:
        os.sched_setaffinity(0, orders["cpus"])
    if orders["command"]:
        os.set_inheritable(orders["report_to"], False)
        become(orders["command"])
    server = serve(orders["server"])
    os.write(orders["report_to"], f"{server.listening_address}\n".encode())
    os.close(orders["report_to"])
    signal.pause()


def die_with(parent: int) -> None:
    """Has the kernel kill this process when ``parent`` ends, also when it ended before we could ask."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def become(command: list[str]) -> NoReturn:
    """Turns this process into the configured binary."""
    try:
        os.execv(command[0], command)  # noqa: S606 - a list that we built; no shell
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


def serve(options: dict[str, Any]) -> Any:
    """A running server of the wheel. Its web page, its own prompt cache and its warm-up are off."""
    import xllamacpp as xl  # noqa: PLC0415 - only this way of serving needs it

    params = xl.CommonParams()
    params.model.path = options["model"]
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [options["api_key"]]
    params.n_parallel, params.n_ctx, params.kv_unified = options["slots"], options["n_ctx"], False
    params.n_batch = params.n_ubatch = options["n_batch"]
    params.n_threads_http = options["http_threads"]
    params.slot_save_path = options["slot_dir"]
    params.flash_attn_type = xl.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_ram_mib, params.cache_idle_slots = 0, False
    params.ui, params.warmup, params.fit_params, params.verbosity = False, False, False, WARNINGS
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = options["threads"], options["poll"]
        cpu.priority = getattr(xl.ggml_sched_priority, f"GGML_SCHED_PRIO_{options['priority'].upper()}")
    try:
        return xl.Server(params)
    except RuntimeError as error:
        time.sleep(LOG_DELAY_S)
        sys.exit(f"xllamacpp: {error}")


if __name__ == "__main__":
    main()
