"""The server process: how it comes up, how it does not, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from llamacpp_support import answer, private_directory, running

from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.engine import LlamaCppDecode
from diptych.engines.llamacpp.settings import Settings
from diptych.errors import ConfigError, EngineError
from diptych.models.resolve import ModelBundle

SHIM = """#!{python}
# a llama-server binary for the test: the wheel's server behind the binary's command line
import argparse, os, signal
import xllamacpp as xl

parser = argparse.ArgumentParser()
for name in (
    "model", "host", "port", "parallel", "ctx-size", "batch-size", "ubatch-size", "flash-attn", "cache-ram",
    "threads", "threads-batch", "threads-http", "poll", "prio", "slot-save-path",
):
    parser.add_argument("--" + name, required=True)
for name in ("no-kv-unified", "no-webui", "no-warmup"):
    parser.add_argument("--" + name, action="store_true", required=True)
args = parser.parse_args()
p = xl.CommonParams()
p.model.path, p.port = args.model, int(args.port)
p.n_parallel, p.n_ctx = int(args.parallel), int(args.ctx_size)
p.n_batch = p.n_ubatch = int(args.batch_size)
p.flash_attn_type = xl.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
p.cache_ram_mib, p.slot_save_path, p.endpoint_props, p.warmup = 0, args.slot_save_path + "/", True, False
p.api_keys = [os.environ["LLAMA_API_KEY"]]
server = xl.Server(p)
signal.pause()
"""


def script(folder: Path, text: str) -> str:
    path = folder / "llama-server"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def remove_saved(directory: Path) -> None:
    for path in directory.glob("saved-*"):
        path.unlink()


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while not gone(pid):
            await asyncio.sleep(0.02)


async def test_close_leaves_no_process_and_no_file(tiny: ModelBundle) -> None:
    async with running(tiny) as engine:
        process = engine._server.process
        assert process is not None
        assert not gone(process.pid)
    assert gone(process.pid)


async def test_a_bad_model_is_one_error_with_the_servers_own_words(
    tiny: ModelBundle, slot_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    bundle = msgspec.structs.replace(tiny, gguf=str(broken))
    with pytest.raises(ConfigError, match=r"does not start(.*\n)*.*broken\.gguf"):
        await LlamaCppDecode.start(Settings(slot_dir=str(slot_dir)), bundle)


async def test_a_server_that_never_gets_ready(tiny: ModelBundle, slot_dir: Path, tmp_path: Path) -> None:
    binary = script(tmp_path, "#!/bin/sh\necho still thinking\nexec sleep 60\n")
    settings = Settings(slot_dir=str(slot_dir), binary=binary, start_timeout_s=1)
    with pytest.raises(ConfigError, match=r"not ready after 1 s\n  still thinking"):
        await LlamaCppDecode.start(settings, tiny)


async def test_a_binary_that_is_not_there(tiny: ModelBundle, slot_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/llama-server cannot be run: No such file"):
        await LlamaCppDecode.start(Settings(slot_dir=str(slot_dir), binary="/nowhere/llama-server"), tiny)


@pytest.mark.parametrize("mode", [0o755, 0o770])
async def test_a_directory_that_others_can_use_is_refused(tiny: ModelBundle, slot_dir: Path, mode: int) -> None:
    slot_dir.chmod(mode)
    with pytest.raises(ConfigError, match="0700"):
        await LlamaCppDecode.start(Settings(slot_dir=str(slot_dir)), tiny)


async def test_a_model_whose_rows_are_not_as_announced(tiny: ModelBundle, slot_dir: Path) -> None:
    wrong = msgspec.structs.replace(tiny, geometry=msgspec.structs.replace(tiny.geometry, kv_heads=1))
    with pytest.raises(ConfigError, match=r"xllamacpp 20\d\d\..*unknown slot file.*header: 67677371 4"):
        await LlamaCppDecode.start(Settings(slot_dir=str(slot_dir)), wrong)


async def test_strangers_are_turned_away(tiny: ModelBundle) -> None:
    async with running(tiny) as engine:
        process = engine._server.process
        assert process is not None
        with pytest.raises(EngineError):
            await Client(process.address, "guess").call("POST", "/slots/0?action=erase")


async def test_any_binary_and_any_address(tiny: ModelBundle, tmp_path: Path) -> None:
    binary = script(tmp_path, SHIM.format(python=sys.executable))
    async with running(tiny, binary=binary) as ours:
        assert ours.describe().build.startswith("llama-server ")
        expected = await answer(ours, (4, 5, 6))
        process = ours._server.process
        assert process is not None
        slot_dir = ours._settings.slot_dir
        settings = Settings(slot_dir=slot_dir, address=process.address, api_key=process.api_key, ctx_per_request=512)
        theirs = await LlamaCppDecode.start(settings, tiny)
        assert await answer(theirs, (4, 5, 6)) == expected
        await theirs.close()
        assert not gone(process.pid)


async def test_an_address_whose_server_saves_elsewhere(tiny: ModelBundle) -> None:
    with private_directory() as elsewhere:
        async with running(tiny) as engine:
            process = engine._server.process
            assert process is not None
            settings = Settings(slot_dir=str(elsewhere), address=process.address, api_key=process.api_key)
            with pytest.raises(ConfigError, match="slot-save-path"):
                await LlamaCppDecode.start(settings, tiny)
            remove_saved(Path(engine._settings.slot_dir))


PARENT = """
import asyncio, sys, msgspec
from diptych.engines.llamacpp.process import ServerProcess
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.models.resolve import ModelBundle

async def main():
    bundle = msgspec.json.decode(sys.argv[1], type=ModelBundle)
    server = await ServerProcess.start(Settings(slot_dir=sys.argv[2]), Model.of(bundle))
    print(server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_child_dies_with_its_parent(tiny: ModelBundle, slot_dir: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, msgspec.json.encode(tiny).decode(), str(slot_dir)]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE)  # noqa: ASYNC220 - it is killed while it runs
    assert parent.stdout is not None
    child = int(await asyncio.to_thread(parent.stdout.readline))
    assert not gone(child)
    parent.send_signal(signal.SIGKILL)
    await asyncio.to_thread(parent.wait)
    parent.stdout.close()
    await until_gone(child)
    (slot_dir / "server.log").unlink()


def test_the_child_notices_a_parent_that_was_gone_before_it_asked() -> None:
    code = "from diptych.engines.llamacpp.host import die_with; die_with(1); print('alive')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=dict(os.environ))
    assert (run.returncode, run.stdout) == (1, b"")
