"""The demo's report is one self-contained page, and says what was measured, whatever was measured."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from trainer.demo import report
from trainer.demo.charts import Mark, Series, chart, histogram, ticks
from trainer.demo.result import DemoResult, Kill, Point, Sight

VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that closes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.loads.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(text: str) -> Balanced:
    page = Balanced()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def a_run() -> DemoResult:
    result = DemoResult("synthetic", 1000.0, 2, events=3000, events_per_s=999.96, seconds=3.0, hr_at_10=0.25)
    result.rows = {"items": 40, "actions": 2}
    result.sights = [Sight(first_event_s=index / 10, wait_s=0.1 + index / 100) for index in range(30)]
    result.points = [Point(float(t), 0.1 * t, 0.05, 3.0, 1000 * t, 1000.0, 5) for t in (1, 2, 3)]
    result.popularity = [(1.0, 0.1), (2.0, 0.12)]
    result.kills = [Kill(shard=1, killed_s=1.5, restarted_s=2.0, level_s=2.75)]
    return result


def test_the_page_loads_nothing_and_every_tag_closes() -> None:
    page = report.render(a_run())
    assert parse(page).loads == []
    assert "http" not in page and "url(" not in page


def test_the_page_explains_its_lines_and_shows_words_without_quotes() -> None:
    run = a_run()
    assert "true tastes" not in report.render(run)
    run.ideal = [(1.0, 0.9), (2.0, 0.9)]
    page = report.render(run)
    assert page.count("nowing the true tastes") >= 2
    assert "<td>synthetic</td>" in page and "&quot;synthetic" not in page


def test_the_page_of_a_run_that_measured_nothing_is_still_a_page() -> None:
    parse(report.render(DemoResult("kafka", 500.0, 2)))


def test_summary_has_the_promised_fields_and_matches_the_sights(tmp_path: Path) -> None:
    _, summary = report.write(a_run(), tmp_path / "deep")
    values = json.loads(summary.read_text())
    assert values["events"] == 3000 and values["events_per_s"] == 1000.0 and values["hr_at_10"] == 0.25
    assert values["rows"] == 42 and values["rows_by_table"] == {"actions": 2, "items": 40}
    assert values["time_to_first_embedding_p50_s"] == 0.25
    assert values["time_to_first_embedding_p99_s"] == 0.39
    assert values["kills"] == 1 and values["catch_up_s"] == [1.25]
    assert not list((tmp_path / "deep").glob("*.new"))


def test_summary_of_no_sights_says_so_instead_of_inventing() -> None:
    values = DemoResult("synthetic", 1.0, 2).summary()
    assert values["time_to_first_embedding_p50_s"] is None and values["new_items"] == 0


finite = st.floats(min_value=1e-6, max_value=1e9)


@given(low=st.floats(min_value=-1e6, max_value=1e6), width=finite, num_max=st.integers(2, 12))
def test_ticks_are_few_and_inside(low: float, width: float, num_max: int) -> None:
    high = low + width
    if high - low < 1e-6 * max(abs(low), abs(high)):
        return
    values = ticks(low, high, num_max)
    assert len(values) <= num_max + 1
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in values)


@given(
    points=st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=30),
    name=st.text(max_size=12),
)
@example(points=[(5e-324, 0.0)], name="")
@example(points=[(1e-310, 1e-310)], name="")
def test_a_chart_of_anything_is_well_formed_and_stays_in_its_frame(
    points: list[tuple[float, float]], name: str
) -> None:
    points = [(x, y) for x, y in points if not math.isfinite(x) or abs(x) < 1e12]
    points = [(x, y) for x, y in points if not math.isfinite(y) or abs(y) < 1e12]
    series = Series(name, [x for x, _ in points], [y for _, y in points])
    text = chart([series, series], x_label="<x>", y_label="y & z", marks=[Mark(0.0, "<now>")])
    parse(text)
    assert "nan" not in text and "inf" not in text.replace(name, "")
    ys = [float(y) for line in re.findall(r'points="([^"]*)"', text) for y in re.findall(r",(-?[\d.]+)", line)]
    assert all(0 <= y <= 260 for y in ys)


@given(st.lists(st.floats(min_value=0, max_value=1e6), max_size=50))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    text = histogram(values, x_label="s", y_label="n", x_max=10.0)
    parse(text)
    assert sum(int(count) for count in re.findall(r": (\d+)</title>", text)) == len(values)
