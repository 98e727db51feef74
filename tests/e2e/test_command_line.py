"""The command line: what is wrong is one line and exit code 2; what is right works against a running fleet."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from support.fleet import Fleet, children, command, environment, free_port, run

pytestmark = pytest.mark.e2e


def refused(*arguments: str, code: int = 2, **environment: str) -> str:
    """The one line on standard error."""
    done = run(*arguments, **environment)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def test_wrong_flags() -> None:
    assert "--prot" in refused("serve", "--prot", "8080")
    assert "65535" in refused("serve", "--port", "99999")
    assert "integer" in refused("serve", "--port", "many")
    assert "srve" in refused("srve")
    assert "--runs" in refused("bench", "pair", "--runs", "0")
    assert "request_id" in refused("trace")


def test_nothing_asked() -> None:
    """The help, once."""
    done = run()
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("Usage: diptych") == 1


def test_wrong_models(tmp_path: Path) -> None:
    assert "no model '/nowhere.gguf'" in refused("serve", "--model", "/nowhere.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    assert "text.gguf" in refused("serve", "--model", str(text))
    (tmp_path / "empty.gguf").touch()
    assert "empty.gguf" in refused("serve", "--model", str(tmp_path / "empty.gguf"))
    assert "config.json" in refused("serve", "--model", str(tmp_path))


def test_truncated_model(tmp_path: Path, tiny_gguf: Path) -> None:
    data = tiny_gguf.read_bytes()
    for share in (2, 200, 3000):
        cut = tmp_path / f"cut-{share}.gguf"
        cut.write_bytes(data[: len(data) - len(data) // share])
        assert cut.name in refused("serve", "--model", str(cut), "--port", "0")


def test_port_in_use(tiny_gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused("serve", "--model", str(tiny_gguf), "--port", port)
    assert "cannot listen" in refused("serve", "--model", str(tiny_gguf), "--host", "192.0.2.1")
    assert "no-such-host.invalid" in refused("serve", "--model", str(tiny_gguf), "--host", "no-such-host.invalid")


WRONG_FILES = {
    "not TOML": ("[gateway\n", "not valid TOML"),
    "unknown key": ("[gateway]\nprot = 1\n", ":2: Object contains unknown field `prot`"),
    "unknown table": ("[gate]\nport = 1\n", "unknown field `gate`"),
    "wrong type": ('[gateway]\nport = "x"\n', ":2: Expected `int`"),
    "out of range": ("[[decode]]\nslots = 0\n", ":2: Expected `int` >= 1"),
    "wrong choice": ('[routing]\nmode = "fast"\n', "Invalid enum value 'fast'"),
    "same id twice": ('[[decode]]\nid = "prefill-0"\n', "used twice"),
    "batch below slots": ("[[decode]]\nn_batch = 4\n", "less than its 8 slots"),
    "no decode": ("decode = []\n", "at least one [[decode]]"),
    "unknown engine": ('[[prefill]]\nengine = "abacus"\n', "Invalid enum value 'abacus'"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_wrong_files(tmp_path: Path, what: str) -> None:
    text, words = WRONG_FILES[what]
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    line = refused("serve", "--config", str(file))
    assert str(file) in line
    assert words in line


def test_missing_file(tmp_path: Path) -> None:
    assert "none.toml" in refused("serve", "--config", str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b'[model]\nsource = "\xe9"\n')
    assert "latin.toml" in refused("serve", "--config", str(tmp_path / "latin.toml"))


WRONG_WORKERS = {
    "device": ('[[prefill]]\ndevice = "cuda:7"\n', "cuda:7"),
    "no such device": ('[[prefill]]\ndevice = "abacus"\n', "abacus"),
    "landing area": ("[[decode]]\nlanding_mb = 1\n", "landing_mb"),
    "too much memory": ("[[decode]]\nlanding_mb = 100000000\n", "shared memory"),
    "binary": ('[[decode]]\nbinary = "/nowhere/llama-server"\n', "/nowhere/llama-server"),
}


@pytest.mark.parametrize("what", WRONG_WORKERS)
def test_settings_that_a_worker_refuses(tmp_path: Path, tiny_gguf: Path, what: str) -> None:
    """All of the fleet ends, with the worker's words, and leaves nothing."""
    text, words = WRONG_WORKERS[what]
    file = tmp_path / "fleet.toml"
    file.write_text(f'[model]\nsource = "{tiny_gguf}"\n[gateway]\nport = {free_port()}\n{text}')
    done = run("serve", "--config", str(file))
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert any(words in line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr
    owners = [path.name.rsplit("-", 1)[1] for path in Path("/dev/shm").glob(f"diptych-{os.getuid()}-*")]
    assert all(Path(f"/proc/{owner}").exists() for owner in owners), "nothing of it is left"


def test_no_gateway() -> None:
    port = free_port()
    assert "make serve" in refused("trace", "latest", "--url", f"http://127.0.0.1:{port}")
    assert "make serve" in refused("ask", "hello", "--url", f"http://127.0.0.1:{port}")


def test_ask_and_trace(tiny_fleet: Fleet) -> None:
    asked = run("ask", "How are you?", "--url", tiny_fleet.url, "--max-tokens", "8")
    assert asked.returncode == 0, asked
    assert "KV handed over" in asked.stdout
    request_id = tiny_fleet.records(1)[0]["id"]
    for which in ("latest", request_id):
        traced = run("trace", which, "--url", tiny_fleet.url)
        assert traced.returncode == 0, traced
        assert request_id in traced.stdout
        assert "decode" in traced.stdout
        assert "predicted" in traced.stdout
    assert "knows no request" in refused("trace", "nothing", "--url", tiny_fleet.url)
    assert "'nobody'" in refused("ask", "hello", "--model", "nobody", "--url", tiny_fleet.url)


def test_models() -> None:
    listed = run("models")
    assert listed.returncode == 0
    assert "smollm2-135m" in listed.stdout
    assert "llama, qwen2, qwen3" in listed.stdout


def test_output_into_a_closed_pipe(tiny_fleet: Fleet) -> None:
    """``diptych trace latest | head -1`` and the like."""
    trace = command("trace", "latest", "--url", tiny_fleet.url)
    with subprocess.Popen(trace, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as traced:
        traced.stdout.close()
        assert b"Traceback" not in traced.stderr.read()
    assert children(traced.pid) == []
