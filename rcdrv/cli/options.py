"""Translate API parameters in messages into command-line options.

Nothing below ``cli/`` knows an option: a message or a hint names an API parameter in backticks,
alone (```reg_bar```) or with a value (```irq=poll```). The command line prints the option instead
(``--reg-bar``, ``--irq poll``).
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any

OPTIONS = {
    # rcdrv.open, Endpoint.ring, Endpoint.test
    "address": "--device",
    "reg_bar": "--reg-bar",
    "irq": "--irq",
    "timeout": "--timeout",
    "width": "--width",
    "record": "--record",
    "vf_token": "--vf-token",
    "bar": "--bar",
    "force": "--force",
    "destructive": "--destructive",
    "more": "--more",
    # epf_vntb: choose_map, Vntb, the pingers
    "control": "--ctrl-bar",
    "doorbell": "--db-bar",
    "peer_spad": "--spad-bar",
    "windows": "--mw-bar",
    "size": "--size",
    "chunk": "--chunk",
    "mtu": "--transport-mtu",
    "transport_mtu": "--transport-mtu",
    "peer_ip": "--peer-ip",
    "queues": "--queues",
    # host: Binder.bind, rescan
    "whole_group": "--group",
    "within": "--wait",
    # fuzz: Plan, board.Shell; bench.plot.draw
    "command": "--ep",
    "dask": "--dask",
    "folder": "--out",
    "path": "--plot",
}
"""Option of each parameter that a message may name."""

_NAMED = r"`([a-z_]+)(?:=([^`\s]*))?`"  # compiled by the first message that needs it


def spell(text: str) -> str:
    """Return the text with each parameter in backticks replaced by its option."""
    return re.sub(_NAMED, _option, text) if "`" in text else text


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    option = OPTIONS.get(name)
    if option is None:
        return found[0]
    return option if value in (None, "True") else f"{option} {value}"


_TEXTS = ("message", "hint", "diagnostics", "notes")


def spell_document(document: Any) -> Any:
    """Return a copy of a JSON document with options in messages, hints and diagnostics."""
    if isinstance(document, dict):
        return {
            key: _spell_all(value) if key in _TEXTS else spell_document(value)
            for key, value in document.items()
        }
    return [spell_document(one) for one in document] if isinstance(document, list) else document


def _spell_all(value: Any) -> Any:
    if isinstance(value, str):
        return spell(value)
    return [_spell_all(one) for one in value] if isinstance(value, list) else spell_document(value)
