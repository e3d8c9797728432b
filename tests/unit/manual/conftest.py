from __future__ import annotations

import pytest

from rcdrv.manual.grammar import Command, command_tree


@pytest.fixture(scope="session")
def tree() -> Command:
    return command_tree()
