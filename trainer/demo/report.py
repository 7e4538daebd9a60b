"""Writes ``report.html``: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

from trainer.demo.charts import STYLE, Mark, Series, chart, histogram
from trainer.demo.result import DemoResult, Point, percentile

WINDOW_S = 2.0
SPEED_WINDOW_S = 0.9

_PAGE_STYLE = (
    """
:root{--bg:#fff;--text:#1b1f24;--text-soft:#5b6570;--grid:#e7eaee;--card:#f6f7f9;
--c0:#2166c4;--c1:#d9660b;--c2:#3b8f4f;--c3:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--text:#e8eaed;--text-soft:#9aa4ae;--grid:#2a3037;--card:#1d2126;
--c0:#6ea8f7;--c1:#f2a15a;--c2:#7cc48d;--c3:#f08a83}}
body{background:var(--bg);color:var(--text);font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:32px auto;
padding:0 20px}
h1{font-size:24px;margin-bottom:4px}h2{font-size:17px;margin:36px 0 4px}p{margin:4px 0 12px;color:var(--text-soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:10px;margin:20px 0}
.card{background:var(--card);border-radius:8px;padding:12px 14px}.card b{display:block;font-size:22px}
.card span{color:var(--text-soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:4px 8px;border-bottom:1px solid var(--grid)}td:last-child{text-align:right}
"""
    + STYLE
)


def write(result: DemoResult, directory: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``summary.json`` into ``directory``, each whole or not at all; returns their paths."""
    report, summary = directory / "report.html", directory / "summary.json"
    _replace(report, render(result))
    _replace(summary, json.dumps(result.summary(), indent=2) + "\n")
    return report, summary


def render(result: DemoResult) -> str:
    """The page as text."""
    sections = [_head(result), _cards(result), _score(result), _freshness(result), _speed(result), _kills(result)]
    sections.append(_table(result))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>embedstore demo</title>'
        f"<style>{_PAGE_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _head(result: DemoResult) -> str:
    carrier = "an Apache Kafka topic" if result.source == "kafka" else "a paced synthetic stream"
    return (
        f"<h1>embedstore demo</h1><p>{result.events:,} events in {result.seconds:.0f} s from {carrier}: one trainer "
        f"learnt them, {result.num_shards} shards kept the rows, one serving follower answered with them.</p>"
    )


def _cards(result: DemoResult) -> str:
    values = [
        (_text(result.hr_at_10_last_window, 3), "HR@10, last window"),
        (_text(result.popularity_hr_at_10, 3), "HR@10 of popularity, whole run"),
        (_seconds(result.time_to_first_embedding_s(0.5)), "first embedding, p50"),
        (_seconds(result.time_to_first_embedding_s(0.99)), "first embedding, p99"),
        (f"{result.events_per_s:,.0f}", "events/s"),
        (f"{sum(result.rows.values()):,}", "rows"),
    ]
    cards = "".join(f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(n)}</span></div>' for v, n in values)
    return f'<div class="cards">{cards}</div>'


def _marks(result: DemoResult) -> list[Mark]:
    return [Mark(kill.killed_s, f"shard {kill.shard} killed") for kill in result.kills]


def _score(result: DemoResult) -> str:
    points = [point for point in result.points if point.hr_at_10 is not None]
    series = [Series("the model", [p.time_s for p in points], [p.hr_at_10 or 0.0 for p in points])]
    series.append(Series("popularity", *_columns(result.popularity), color=1))
    about = "Popularity ranks the most clicked items of the last minutes first."
    if result.ideal:
        about += (
            " Knowing the true tastes means ranking by the chances with which the synthetic world draws the next item: "
            "no model can do better on average."
        )
        series.append(Series("knowing the true tastes", *_columns(result.ideal), color=2, kind="dash"))
    return (
        "<h2>Score</h2><p>Each event is predicted before it is learnt: how often the next item is among the ten best "
        f"of all items known at that moment. {about}</p>"
        + chart(series, x_label="seconds", y_label="HR@10", marks=_marks(result))
    )


def _freshness(result: DemoResult) -> str:
    sights = sorted(result.sights, key=lambda sight: sight.first_event_s)
    waits = [sight.wait_s for sight in sights]
    xs = [sight.first_event_s for sight in sights]
    windows = _windows(xs, waits)
    series = [Series("one new item", xs, waits, kind="points")]
    series.append(Series("median", [x for x, _, _ in windows], [y for _, y, _ in windows], color=1))
    series.append(Series("p99", [x for x, _, _ in windows], [y for _, _, y in windows], color=2, kind="dash"))
    p99 = result.time_to_first_embedding_s(0.99)
    return (
        "<h2>Time to first embedding</h2><p>From the first event of a new item until the serving follower, another "
        f"process, returns its row: {len(sights):,} new items. Median and p99 are over {WINDOW_S:.0f} seconds each.</p>"
        + chart(series, x_label="seconds", y_label="seconds to first embedding", marks=_marks(result))
        + histogram(
            waits, x_label="seconds to first embedding", y_label="new items", x_max=max((p99 or 1.0) * 1.25, 0.05)
        )
    )


def _speed(result: DemoResult) -> str:
    speeds = _speeds(result.points)
    xs = [time_s for time_s, _ in speeds]
    series = [Series("learnt", *_columns(speeds))]
    series.append(Series("sent", xs, [result.rate_per_s] * len(xs), color=1, kind="dash"))
    return "<h2>Events</h2><p>Events a second that the trainer learnt, beside the pace of the stream.</p>" + chart(
        series, x_label="seconds", y_label="events/s", marks=_marks(result)
    )


def _kills(result: DemoResult) -> str:
    if not result.kills:
        return ""
    rows = "".join(
        f"<tr><td>shard {kill.shard}</td><td>{kill.killed_s:.1f} s</td><td>{_seconds(kill.restarted_s)}</td>"
        f"<td>{_seconds(kill.catch_up_s)}</td></tr>"
        for kill in result.kills
    )
    return (
        "<h2>Kills</h2><p>Shards that were ended with SIGKILL. What they had not yet made durable was read from the "
        "stream again.</p><table><tr><th>process</th><th>killed at</th><th>restarted at</th><th>level again after</th>"
        f"</tr>{rows}</table>"
    )


def _table(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
        for name, value in result.summary().items()
        for text in [value if isinstance(value, str) else json.dumps(value)]
    )
    return f"<h2>All numbers</h2><table>{rows}</table>"


def _speeds(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Events a second between reports that are at least ``SPEED_WINDOW_S`` apart, at the later one's time."""
    speeds = []
    begin = points[0] if points else None
    for point in points:
        if begin is not None and point.time_s - begin.time_s >= SPEED_WINDOW_S:
            speeds.append((point.time_s, (point.events - begin.events) / (point.time_s - begin.time_s)))
            begin = point
    return speeds


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _windows(xs: Sequence[float], values: Sequence[float]) -> list[tuple[float, float, float]]:
    """(middle, median, p99) of each window of ``WINDOW_S`` that holds any value; ``xs`` ascend."""
    by_window: dict[int, list[float]] = {}
    for x, value in zip(xs, values, strict=True):
        by_window.setdefault(int(x // WINDOW_S), []).append(value)
    return [
        ((index + 0.5) * WINDOW_S, percentile(window, 0.5) or 0.0, percentile(window, 0.99) or 0.0)
        for index, window in by_window.items()
    ]


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
