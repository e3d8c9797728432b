"""Section of ``rcdrv check``: the layers of a bring-up, up to the first broken one."""

from __future__ import annotations

from rcdrv.report.html.markup import Markup, element, join
from rcdrv.report.html.section import Section, badge, explanation, finding, wide_table
from rcdrv.report.html.source import Node, Source


def section(source: Source) -> Section:
    node = source.node
    broken, side = node.said("broken"), node.said("side")
    device = node["device"].text
    rows = [_row(one, node) for one in node["layers"]]
    heads = ("verdict", "layer", "what was seen")
    return Section(
        "check",
        device,
        source.name,
        node["verdict"].verdict,
        f"{broken} is broken, look at: {side}" if broken else "no layer is broken",
        join(
            element("p", node.said("description"), class_="note"),
            wide_table(heads, element("tbody", rows)),
        ),
        finding(node, device),
    )


def _row(layer: Node, document: Node) -> Markup:
    name = layer["name"].text
    told = layer.find("verdict")
    mark = badge(told.verdict) if told else element("span", "not reached", class_="badge not-run")
    is_broken = name == document.said("broken")
    why = (document.said(key) if is_broken else "" for key in ("reason", "hint"))
    reason, hint = why
    notes = [note.text for note in layer["notes"]]
    return element(
        "tr",
        element("td", mark),
        element("td", name),
        element(
            "td",
            explanation(reason, layer.said("message"), hint),
            [element("p", note, class_="note") for note in notes],
        ),
        class_=f"case {told.verdict.value}" if told else "case",
    )
