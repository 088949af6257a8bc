"""What the contracts share: the real engines, started at most once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.real_engines import Engines


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("engines"))
    yield made
    made.close()
