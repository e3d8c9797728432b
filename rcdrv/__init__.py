"""Userspace PCIe root-complex driver for bringing up PCIe endpoints, through VFIO.

:func:`open` gives an :class:`Endpoint`; what else stands in ``__all__`` is what its methods take,
return and raise. These names are stable, and docs/api.md describes them. Each is imported when it
is first used, so ``import rcdrv`` costs nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the import: checkers know the name
if TYPE_CHECKING:
    from rcdrv.api import Endpoint as Endpoint
    from rcdrv.api import case_names as case_names
    from rcdrv.api import open as open
    from rcdrv.epf_test.answer import IrqChoice as IrqChoice
    from rcdrv.epf_test.check import CheckResult as CheckResult
    from rcdrv.epf_test.doorbell import Doorbell as Doorbell
    from rcdrv.epf_test.doorbell import Location as Location
    from rcdrv.epf_test.driver import EpfTest as EpfTest
    from rcdrv.epf_test.registers import Caps as Caps
    from rcdrv.epf_vntb.driver import Vntb as Vntb
    from rcdrv.errors import DeviceLost as DeviceLost
    from rcdrv.errors import EndpointError as EndpointError
    from rcdrv.errors import HostError as HostError
    from rcdrv.errors import Interrupted as Interrupted
    from rcdrv.errors import RcdrvError as RcdrvError
    from rcdrv.errors import UsageError as UsageError
    from rcdrv.function import Function as Function
    from rcdrv.mmio import Window as Window
    from rcdrv.needs import CAPABILITIES as CAPABILITIES
    from rcdrv.outcomes import RingResult as RingResult
    from rcdrv.outcomes import SuiteResult as SuiteResult
    from rcdrv.results.outcome import Result as Result
    from rcdrv.verdict import NotPassed as NotPassed
    from rcdrv.verdict import Reason as Reason
    from rcdrv.verdict import Verdict as Verdict
    from rcdrv.wait import Cancel as Cancel

_HOMES = {
    "CAPABILITIES": "needs",
    "Cancel": "wait",
    "Caps": "epf_test.registers",
    "DeviceLost": "errors",
    "Doorbell": "epf_test.doorbell",
    "Endpoint": "api",
    "EndpointError": "errors",
    "EpfTest": "epf_test.driver",
    "Function": "function",
    "HostError": "errors",
    "Interrupted": "errors",
    "IrqChoice": "epf_test.driver",
    "Location": "epf_test.doorbell",
    "NotPassed": "verdict",
    "RcdrvError": "errors",
    "Reason": "verdict",
    "Result": "results.outcome",
    "CheckResult": "epf_test.check",
    "RingResult": "outcomes",
    "SuiteResult": "outcomes",
    "UsageError": "errors",
    "Verdict": "verdict",
    "Vntb": "epf_vntb.driver",
    "Window": "mmio",
    "case_names": "api",
    "open": "api",
}
"""The module of each public name."""

__all__ = [*_HOMES]


if not TYPE_CHECKING:  # where it would make every misspelt name one that exists

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'rcdrv' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"rcdrv.{home}"), name)
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
