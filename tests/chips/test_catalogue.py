"""The catalogue: complete, sourced, and refusing what is not."""

from pathlib import Path

import pytest

from diptych.chips import catalogue
from diptych.chips.fits import fits
from diptych.chips.quantity import Quantity, check, weakest
from diptych.errors import ConfigError

GOOD = """
id = "x1"
name = "X1"
family = "gpu"

[flops]
bf16 = { value = 100, unit = "TFLOP/s", kind = "published", source = "a page", date = "2026-01-01" }
fp8 = { unit = "TFLOP/s", kind = "unknown", source = "a page", date = "2026-01-01" }

[memory]
capacity = { value = 80, unit = "GB", kind = "published", source = "a page", date = "2026-01-01" }
bandwidth = { value = 2, unit = "TB/s", kind = "published", source = "a page", date = "2026-01-01" }

[links]
scale_up = { value = 300, unit = "GB/s", kind = "published", source = "a page", date = "2026-01-01" }
nic = { value = 50, unit = "GB/s", kind = "published", source = "a page", date = "2026-01-01" }

[footprint]
power = { value = 700, unit = "W", kind = "published", source = "a page", date = "2026-01-01" }
rack_units = { value = 1, unit = "U", kind = "assumed", source = "a guess", date = "2026-01-01" }
price = { value = 3, unit = "USD/h", kind = "published", source = "a page", date = "2026-01-01" }
"""

WANTED = {
    "trainium2", "trainium3", "inferentia2", "cs3", "cs4", "a100", "h100", "h200", "b200", "b300", "gb200", "gb300",
    "mi300x", "mi355x", "tpu-v5e", "tpu-v6e", "tpu-7x", "gaudi3", "groq-lpu", "sn40l", "sn50", "dgx-spark", "m3-ultra",
    "cpu-2core",
}  # fmt: skip

KV_BYTES_PER_TOKEN = {
    "llama-3.1-8b": 131072, "llama-3.1-70b": 327680, "llama-3.1-405b": 516096, "llama-4-scout": 196608,
    "llama-4-maverick": 196608, "gpt-oss-20b": 49152, "gpt-oss-120b": 73728, "qwen3-0.6b": 114688,
    "qwen3-8b": 147456, "qwen3-32b": 262144, "qwen3-30b-a3b": 98304, "qwen3-235b-a22b": 192512,
    "qwen3-coder-480b": 253952, "deepseek-v3": 70272, "kimi-k2": 70272, "glm-5": 89856, "glm-5.2": 89856,
    "smollm2-135m": 23040,
}  # fmt: skip


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "x1.toml"
    file.write_text(text)
    return str(file)


def test_every_wanted_chip_is_there_and_loads():
    assert set(catalogue.chip_ids()) >= WANTED
    for name in catalogue.chip_ids():
        chip = catalogue.chip(name)
        assert chip.id == name
        assert chip.machines


def test_trainium_comes_as_chip_machine_and_ultraserver():
    assert {(m.id, m.chips) for m in catalogue.chip("trainium2").machines} == {
        ("trn2.48xlarge", 16),
        ("trn2-ultraserver", 64),
    }


@pytest.mark.parametrize("name", list(KV_BYTES_PER_TOKEN))
def test_kv_bytes_per_token_follow_from_geometry(name: str):
    assert catalogue.model(name).geometry.kv_bytes_per_token(2.0) == KV_BYTES_PER_TOKEN[name]


@pytest.mark.parametrize("name", catalogue.model_ids())
def test_parameters_follow_from_geometry(name: str):
    """Within 3 % of the card in all, within 9 % of those active (cards leave out embeddings as they please)."""
    model = catalogue.model(name)
    assert model.geometry.params == pytest.approx(model.card.total_params.si, rel=0.03)
    assert model.geometry.active_params == pytest.approx(model.card.active_params.si, rel=0.09)


def test_windows_bound_the_kv():
    scout, oss = catalogue.model("llama-4-scout").geometry, catalogue.model("gpt-oss-120b").geometry
    assert scout.kv_bytes(8192) == 8192 * 196608
    assert scout.kv_bytes(16384) == 8192 * 196608 + 8192 * 196608 / 4
    assert oss.kv_bytes(1_000_000) / 1_000_000 == pytest.approx(36864, rel=0.001)


def test_r1_and_v3_are_one_model():
    assert catalogue.model("deepseek-ai/DeepSeek-R1") is catalogue.model("deepseek-ai/DeepSeek-V3")


@pytest.mark.parametrize("family", ["gpu", "cpu", "cpu-llamacpp", "trainium", "wafer"])
def test_coefficients_load(family: str):
    assert fits(family).chips


def test_a_file_of_ones_own_is_a_chip(tmp_path: Path):
    chip = catalogue.chip(write(tmp_path, GOOD))
    assert chip.flops_of("fp8").si == 100e12  # unknown: falls back to bf16
    assert chip.machines[0].chips == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "a guess", ', "", r":20: .*`source`"),
        (', date = "2026-01-01" }\n\n[memory]', " }\n\n[memory]", r":8: .*`date`"),
        ('unit = "GB", ', "", r":11: .*`unit`"),
        ('kind = "assumed", ', "", r":20: .*`kind`"),
        ('value = 80, unit = "GB"', 'value = 80, unit = "GB/s"', r":11: capacity: unit 'GB/s' does not measure bytes"),
        ('value = 80, unit = "GB"', 'value = 80, unit = "gigs"', r":11: .*use one of B, GB, GiB, TB"),
        ('value = 80, unit = "GB"', 'unit = "GB"', r":11: capacity: give a value, or kind = \"unknown\""),
        ('value = 80, unit = "GB"', 'value = -80, unit = "GB"', r":11: .*not a finite number"),
        ('value = 80, unit = "GB"', 'value = nan, unit = "GB"', r":11: .*not a finite number"),
        ('source = "a guess"', 'source = " "', r":20: .*source and date"),
        ('bf16 = { value = 100, unit = "TFLOP/s"', 'bf16 = 100 # { unit = "TFLOP/s"', r":7: .*a number is written"),
        ('kind = "assumed"', 'kind = "guessed"', r":20: .*guessed"),
        ("[links]", "[links", r"not a readable TOML"),
        ('family = "gpu"', 'family = "toaster"', r":4: .*toaster"),
    ],
)
def test_a_number_without_provenance_or_with_a_wrong_unit_is_refused(tmp_path: Path, old: str, new: str, message: str):
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        catalogue.chip(file)
    assert "\n" not in str(caught.value).strip()
    assert file in str(caught.value)


@pytest.mark.parametrize("missing", ["source", "date", "kind"])
def test_a_geometry_without_provenance_is_refused(tmp_path: Path, missing: str):
    text = (Path(catalogue.__file__).parent / "catalogue/models/llama-3.1-8b.toml").read_text()
    head, _, tail = text.partition("[geometry]\n")
    lines = [line for line in tail.splitlines() if not line.startswith(missing)]
    with pytest.raises(ConfigError, match=f"needs {missing}"):
        catalogue.model(write(tmp_path, head + "[geometry]\n" + "\n".join(lines)))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="h100"):
        catalogue.chip("h1000")
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b"):
        catalogue.model("llama-9")
    with pytest.raises(ConfigError, match="no such file"):
        catalogue.chip("/nowhere/x.toml")


def test_the_weakest_kind_wins():
    assert weakest(["measured", "assumed", "published"]) == "assumed"
    assert weakest([]) == "measured"


def test_exponents_may_be_negative_and_nothing_else():
    number = Quantity(value=-0.3, unit="1", source="a fit", date="2026", kind="measured")
    check("x", number, "ratio")
    with pytest.raises(ConfigError):
        check("x", Quantity(value=-1.0, unit="s", source="a", date="b", kind="assumed"), "time")
