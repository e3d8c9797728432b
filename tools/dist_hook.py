"""The build's part: manual pages and shell completion, made from the parser, go into the wheel.

hatchling calls it (pyproject.toml). It runs in the build's own environment, which has none of
rcdrv's dependencies: the command line parser needs the standard library alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataFiles(BuildHookInterface[Any]):
    """Adds what :func:`rcdrv.manual.data_files` makes, below the prefix of the installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        sys.path.insert(0, self.root)
        from rcdrv.cli import whole_parser
        from rcdrv.manual import data_files
        from rcdrv.manual.grammar import command_tree

        # The builder reads the files later, so the folder has to live until finalize().
        self._folder = tempfile.TemporaryDirectory()
        for number, (path, text) in enumerate(data_files(command_tree(whole_parser())).items()):
            source = Path(self._folder.name) / str(number)
            source.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(source)] = path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        self._folder.cleanup()
