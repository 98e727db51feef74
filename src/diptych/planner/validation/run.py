"""Every validation, in one list."""

from __future__ import annotations

from pathlib import Path

from diptych.errors import ConfigError
from diptych.planner.validation import published, silicon, splitwise
from diptych.planner.validation.table import Score

SILICON = Path("measurements/gpu_silicon.csv")
SPLITWISE = Path("measurements/gpu_llama2_bloom_splitwise.csv")


def validate(data: Path) -> list[Score]:
    """The scores of all tables. Raises ConfigError when a file is not there."""
    for name in (SILICON, SPLITWISE):
        if not (data / name).is_file():
            raise ConfigError(f"{data / name}: no such table; name the folder that holds measurements/ with --data")
    return [
        *silicon.judge(data / SILICON),
        *splitwise.judge(data / SPLITWISE),
        *published.judge_transfer(),
        *published.judge_pair(),
        *published.judge_wafer(),
        *published.judge_trainium(),
    ]
