"""Base of what ``ring()``, ``test()`` and ``check()`` of :class:`~rcdrv.api.Endpoint` return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

from rcdrv.errors import RcdrvError
from rcdrv.verdict import Verdict, classify

ResultT = TypeVar("ResultT", bound="Result")


class Result(ABC):
    """Outcome of an operation.

    :param finding: the error that decides the verdict; None for a pass
    """

    def __init__(self, finding: RcdrvError | None) -> None:
        self._finding = finding
        self.verdict, self.reason = classify(finding)
        """The reason is None for a pass."""
        self.message = "" if finding is None else finding.message
        """Cause of the verdict, in a sentence."""
        self.hint = "" if finding is None else finding.hint
        """Next thing to check."""

    @property
    def passed(self) -> bool:
        """Whether the verdict is ``pass``; ``skip`` and ``unverified`` are not."""
        return self.verdict is Verdict.PASS

    def check(self: ResultT) -> ResultT:
        """Return self if the verdict is pass or unverified.

        :raises NotPassed: failed or skipped; see its ``verdict``
        :raises DeviceLost: the device was lost
        """
        if self._finding is not None and self.verdict is not Verdict.UNVERIFIED:
            raise self._finding
        return self

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return the JSON document that the command prints and ``rcdrv report`` reads."""

    def __repr__(self) -> str:
        parts = [self.verdict.value, *([self.reason.value] if self.reason else [])]
        said = f": {self.message}" if self.message else ""
        return f"<rcdrv.{type(self).__name__} {' '.join(parts)}{said}>"
