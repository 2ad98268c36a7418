"""Trouble that lasts is told once, again every half minute, and when it is over."""

import logging

import pytest

from outbox import notice
from outbox.notice import Notice

LOG = logging.getLogger("somebody")


def test_it_is_told_once_and_taken_back_once(caplog: pytest.LogCaptureFixture) -> None:
    weather = Notice(LOG)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            weather.trouble("it rains")
        weather.trouble("it pours")
        weather.over()
        weather.over()
    assert caplog.messages == ["it rains", "it pours", "going on: no longer true that it pours"]


def test_what_takes_turns_is_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    weather = Notice(LOG)
    for _ in range(3):
        weather.trouble("it rains")
        weather.trouble("it pours")
    assert caplog.messages == ["it rains", "it pours"]
    assert weather.text == "it pours"


def test_it_is_told_again_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather = Notice(LOG)
    for passed in (0.0, notice.EVERY - 1, notice.EVERY + 1, notice.EVERY + 2):
        monkeypatch.setattr("outbox.notice.time.monotonic", lambda passed=passed: passed)
        weather.trouble("it rains")
    assert caplog.messages == ["it rains"] * 2
