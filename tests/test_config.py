"""Settings: defaults are usable, and a wrong file is refused with its line and what would be right."""

from pathlib import Path

import pytest

from diptych.config import FleetSettings, load
from diptych.errors import ConfigError

WRONG = [
    ("[gateway]\nport = 99999\n", ":2:", "65535"),
    ("[[decode]]\nslots = 8\n[[decode]]\nid = 'd1'\nslots = 0\n", ":5:", ">= 1"),
    ("[model]\n\nsorce = 'x'\n", ":3:", "sorce"),
    ("[[prefill]]\nid = 'a'\n[[decode]]\nid = 'a'\n", "", "used twice"),
    ("[routing]\nmode = 'sometimes'\n", ":2:", "sometimes"),
    ("x = [", "", "not valid TOML"),
    ("decode = []\n", "", "at least one"),
    ("[deadlines]\nprefill_s = -1\n", ":2:", "> 0"),
]


@pytest.mark.parametrize(("text", "line", "cure"), WRONG)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, line: str, cure: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    message = str(refused.value)
    assert message.startswith(f"{path}{line}")
    assert cure in message
    assert "\n" not in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_an_empty_file_is_the_default_fleet(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("")
    assert load(path) == FleetSettings()
