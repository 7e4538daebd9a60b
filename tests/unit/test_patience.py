"""A trainer that is busy with something old says how far it is."""

from __future__ import annotations

import logging

import pytest

from trainer.patience import Progress


def test_a_long_reading_says_how_far_it_is_and_a_short_one_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    monkeypatch.setattr("trainer.patience.time.monotonic", lambda: now_s)
    with caplog.at_level(logging.INFO, "embedtrain"):
        progress = Progress("clicks/0", 300)
        for position in range(300):
            now_s += 0.0625
            progress.at(position)
    assert caplog.messages == [f"reading clicks/0 again: at {at} of 300" for at in (79, 159, 239)]
