"""Engine tests run beside others: one thread each, so none waits at a barrier for a core."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
