"""What all tests share: the collector leaves alone what lives as long as the session; pages without plots."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out of pages on which they say nothing; drawing them takes most of the time."""
    for name in ("draw_plots", "draw_sandwich", "draw_frontier"):
        monkeypatch.setattr(f"vleak.report.page.{name}", lambda rows: [])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Pause the collector while modules and tests are made, and have it never look at them again.

    After that it begins seldom: graphs of captured iterations are many objects that live on.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        gc.enable()
