from __future__ import annotations

import pytest

from rcdrv.cli import whole_parser
from rcdrv.manual.grammar import Command, command_tree


@pytest.fixture(scope="session")
def tree() -> Command:
    return command_tree(whole_parser())
