"""Validation: the repairs and rules by hand-made rows, and the targets on the shared data where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.chips import catalogue
from diptych.chips.fit import Fitted, curve, fit_positive, fit_terms
from diptych.chips.fits import fits, values
from diptych.errors import ConfigError
from diptych.planner.validation import published, silicon, splitwise
from diptych.planner.validation.run import validate
from diptych.planner.validation.table import score

HEADER = (
    "id,silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,gemm_quant_mode,"
    "moe_quant_mode,batch_size,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms"
)


def row(**changes: object) -> str:
    fields: dict[str, object] = {
        "id": "x", "silicon_data_source": "a; silicon_concurrency=16; b", "backend": "vllm", "backend_version": "",
        "model_path": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm", "precision": "fp8", "mode": "agg", "isl": 1024,
        "osl": 1024, "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8", "batch_size": 16, "tp_size": 8, "pp_size": 1,
        "attention_dp_size": 1, "moe_tp_size": 8, "moe_ep_size": 1, "silicon_ttft_ms": 200, "silicon_tpot_ms": 10,
    }  # fmt: skip
    return ",".join(str(value) for value in {**fields, **changes}.values())


def table(tmp_path: Path, *rows: str) -> Path:
    file = tmp_path / "silicon.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    return file


@pytest.mark.parametrize(
    ("layout", "gpus", "dp"),
    [
        ({"tp_size": 8}, 8, 1),
        ({"tp_size": 16, "moe_tp_size": 4, "moe_ep_size": 4}, 4, 1),
        ({"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, 8, 1),
        ({"tp_size": 1, "attention_dp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, 8, 8),
        ({"tp_size": 1, "attention_dp_size": 8, "moe_tp_size": 1, "moe_ep_size": 8}, 8, 8),
        ({"tp_size": 4, "attention_dp_size": 4, "moe_tp_size": 1, "moe_ep_size": 16}, 4, 4),
        ({"tp_size": 1, "attention_dp_size": "", "moe_tp_size": 4, "moe_ep_size": 1}, 4, 4),
    ],
)
def test_layouts_are_mended(tmp_path: Path, layout: dict[str, object], gpus: int, dp: int):
    (found,), _ = silicon.read(table(tmp_path, row(**layout, gemm_quant_mode="nvfp4", moe_quant_mode="nvfp4")))
    assert (found.setup.gpus, found.setup.dp) == (gpus, dp)


def test_rules_leave_rows_out_and_are_counted(tmp_path: Path):
    rows = [
        row(), row(id="y"), row(id="z", model_path="deepseek-ai/DeepSeek-V3"),
        row(mode="disagg"), row(model_path="MiniMaxAI/MiniMax-M2.5"), row(silicon_ttft_ms=9000),
        row(silicon_data_source="silicon_concurrency=90000"), row(tp_size=12, moe_tp_size=12),
    ]  # fmt: skip
    found, excluded = silicon.read(table(tmp_path, *rows))
    assert [r.model for r in found] == ["deepseek-v3"]
    assert excluded["duplicate"] == 2  # the same measurement as V3 and as R1 is one
    assert sum(excluded.values()) == len(rows) - 1


def test_the_concurrency_is_read_from_its_text_column(tmp_path: Path):
    (found,), _ = silicon.read(table(tmp_path, row(batch_size=1)))
    assert found.concurrency == 16


def test_a_broken_table_names_file_and_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"silicon\.csv:2: not a row"):
        silicon.read(table(tmp_path, row(isl="long")))
    with pytest.raises(ConfigError, match="no such table"):
        validate(tmp_path)


def test_a_fit_finds_what_made_the_times():
    terms = [{"a": 1.0, "b": n} for n in (1, 2, 5, 9, 20, 50)]
    truth = Fitted({"a": 0.5, "b": 0.02}, {"f": 0.3})
    factors = [{"f": float(i % 2)} for i in range(len(terms))]
    seconds = [truth.predict(t, f) for t, f in zip(terms, factors, strict=True)]
    found = fit_terms(terms, factors, seconds, {"a": 1.0, "b": 0.1}, pull=1e-4)
    assert found.coefficients == pytest.approx(truth.coefficients, rel=0.01)
    assert found.exponents == pytest.approx(truth.exponents, abs=0.01)


def test_a_coefficient_at_peak_is_never_below_one():
    terms = [{"a": float(n)} for n in (1, 2, 5)]
    found = fit_terms(terms, [{}] * 3, [0.5 * t["a"] for t in terms], {"a": 1.2}, {"a"})
    assert found.coefficients["a"] == pytest.approx(1.0)


def test_positive_fits_and_curves():
    assert fit_positive([[1, 1], [1, 2], [1, 3]], [3.0, 5.0, 7.0]) == pytest.approx([1.0, 2.0])
    assert fit_positive([[1, 1], [1, 2], [1, 3]], [3.0, 2.9, 2.8])[1] == 0.0
    with pytest.raises(ConfigError, match="cannot identify"):
        fit_positive([[1, 1]], [1.0])
    assert curve([(2, 5.0), (1, 1.0), (1, 3.0), (3, 4.0)]) == ((1, 2.0), (2, 5.0), (3, 5.0))


def test_a_score_passes_by_the_statistic_it_is_judged_by():
    pairs = [(1.0, 1.0), (1.1, 1.0), (2.0, 1.0)]
    assert score("t", "m", pairs, fit_rows=1, target=0.15).passed is True
    assert score("t", "m", pairs, fit_rows=1, target=0.15, by="max").passed is False
    assert score("t", "m", pairs, fit_rows=1).passed is None


def test_published_points_meet_their_targets():
    """All but the time to first token of Trainium2, whose one miss (gpt-oss at 512 tokens) is stated in the docs."""
    scores = [
        *published.judge_wafer(),
        *published.judge_transfer(),
        *published.judge_pair(),
        *published.judge_trainium(),
    ]
    missed = [s.metric for s in scores if s.passed is False]
    assert missed == ["TTFT, gpt-oss TP16, Seed-OSS TP8 and TP16"]
    by_metric = {s.metric: s for s in scores}
    assert by_metric["total of the pair without overlap"].median > 0.3  # visibly worse


def test_the_catalogue_has_the_coefficients_that_the_points_give():
    points = published.published()
    floor_s, layer_s = published.fit_wafer([p for p in points.wafer if p.role == "fit"])
    wafer = values(fits("wafer").decode)
    assert (wafer["floor"], wafer["layer"]) == pytest.approx((floor_s, layer_s), rel=1e-3)
    tpot, ttft = published.fit_trainium([p for p in points.trainium if p.role == "fit"])
    trainium = fits("trainium")
    assert values(trainium.decode)["layer"] == pytest.approx(tpot[0], rel=1e-3)
    assert values(trainium.prefill)["exchange"] == pytest.approx(ttft[0], rel=1e-3)
    assert values(trainium.prefill)["layer"] == pytest.approx(published.PREFILL_LAYER_S, rel=1e-3)


def test_splitwise_meets_its_targets(data: Path):
    scores = splitwise.judge(data / "measurements/gpu_llama2_bloom_splitwise.csv")
    assert [s.passed for s in scores if s.target] == [True] * 6
    assert scores[0].excluded == {"power-capped": 420, "70B TP2 batch 64": 10}


def test_the_gpu_model_meets_its_targets_on_models_it_has_not_seen(data: Path):
    scores = silicon.judge(data / "measurements/gpu_silicon.csv")
    assert [s.metric for s in scores if not s.passed] == []
    assert len(scores) == 2 * (1 + 8)


def test_the_gpu_coefficients_of_the_catalogue_are_those_of_the_table(data: Path):
    rows, _ = silicon.read(data / "measurements/gpu_silicon.csv")
    assert values(fits("gpu").decode)["weights"] == pytest.approx(
        silicon.fit_tpot(rows).coefficients["weights"], rel=1e-3
    )
    assert set(fits("gpu").chips) == {row.setup.chip.id for row in rows}
    assert set(fits("gpu").chips) <= set(catalogue.chip_ids())
