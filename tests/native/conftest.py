from __future__ import annotations

from collections.abc import Iterator

import pytest
from native_cases import IMPLEMENTATIONS, using


@pytest.fixture(params=["native", "torch"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once in native code, where there is any, and once in plain PyTorch."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def each_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test in plain PyTorch and in native code on every instruction set."""
    with using(request.param):
        yield request.param
