"""Ranks are counted against the target in every doubtful case; the measures are those of their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import Metrics, MetricsFile, Rate, write_summary
from trainer.model.scoring import RANK_MAX, CandidateScorer, competition_ranks


@given(scores=st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=6), data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_rank_is_the_strictly_better_ones_and_all_ties(scores: list[list[int]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, 4)) for _ in scores]
    ranks = competition_ranks(torch.tensor(scores, dtype=torch.float32), torch.tensor(targets))
    for row, target, rank in zip(scores, targets, ranks.tolist(), strict=True):
        others = [value for place, value in enumerate(row) if place != target]
        assert rank == 1 + sum(value >= row[target] for value in others)


def test_nan_counts_against_the_target() -> None:
    scores = torch.tensor([[1.0, float("nan"), 0.0], [float("nan"), 1.0, 0.0]])
    assert competition_ranks(scores, torch.tensor([0, 0])).tolist() == [2, RANK_MAX]


def test_logits_follow_their_formula() -> None:
    torch.manual_seed(1)
    scorer = CandidateScorer(2, temperature=0.25)
    with torch.no_grad():
        scorer.popularity_K.copy_(torch.tensor([0.5, -1.5]))
        scorer.seen.fill_(-2.0)
        scorer.latest.fill_(-0.5)
    query = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    rows, popularity = torch.randn(3, 8), torch.randn(3, 2)
    logits = scorer(query, rows, popularity)
    expected = 4.0 * query @ (rows / rows.norm(dim=-1, keepdim=True)).T + (popularity @ torch.tensor([0.5, -1.5]))
    torch.testing.assert_close(logits, expected)
    pairs = (torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([False, True, True]))
    marked = scorer.add_history_(logits.clone(), *pairs)
    change = torch.tensor([[-2.0, 0.0, -2.5], [0.0, -2.5, 0.0]])
    torch.testing.assert_close(marked - logits, change)


ranks_lists = st.lists(st.integers(1, 30) | st.just(RANK_MAX), max_size=50)


@given(before=ranks_lists, scored=ranks_lists)
def test_totals_and_windows_equal_brute_force(before: list[int], scored: list[int]) -> None:
    metrics = Metrics(score_from_ms=1000)
    metrics.tested(np.array(before, np.int64), np.full(len(before), 999))
    metrics.tested(np.array(scored, np.int64), np.full(len(scored), 1000))
    result, window = metrics.scored(), metrics.window()
    assert result["tests"] == len(scored)
    assert window["window_tests"] == len(before) + len(scored)
    for ranks, hit_rate, mean in (
        (scored, result["hr_at_10"], result["mrr_at_10"]),
        ([*before, *scored], window["window_hr_at_10"], window["window_mrr_at_10"]),
    ):
        if not ranks:
            assert hit_rate is None
            assert mean is None
        else:
            assert hit_rate == pytest.approx(sum(rank <= 10 for rank in ranks) / len(ranks))
            assert mean == pytest.approx(sum(1 / rank for rank in ranks if rank <= 10) / len(ranks))
    assert result["recall_at_10"] == result["hr_at_10"]


def test_metrics_go_on_from_their_state() -> None:
    metrics = Metrics()
    metrics.tested(np.array([1, 20]), np.array([5, 5]))
    metrics.learnt(2.0)
    metrics.learnt(float("nan"))
    copy = Metrics()
    copy.load_state(*json_like(metrics.state()))
    assert copy.scored() == metrics.scored()
    assert copy.window() == metrics.window()
    assert copy.scored()["skipped_steps"] == 1


def json_like(state: tuple[dict[str, np.ndarray], dict[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return state[0], json.loads(json.dumps(state[1]))


def test_rates_are_events_over_seconds() -> None:
    rate = Rate(100.0)
    for second in range(1, 101):
        rate.add(10 if second <= 50 else 30, 100.0 + second)
    assert rate.overall(200.0) == pytest.approx(20.0)
    assert rate.recent(200.0) == pytest.approx(30.0)


def test_metrics_file_and_summary_hold_whole_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "new" / "m.jsonl")
    file.write({"a": 1, "b": None})
    file.write({"a": 2})
    file.close()
    lines = (tmp_path / "new" / "m.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1, "b": None}, {"a": 2}]
    write_summary(tmp_path / "s.json", {"events": 3})
    assert json.loads((tmp_path / "s.json").read_text()) == {"events": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "s.json"]
