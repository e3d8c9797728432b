"""Events of a recording, described for messages."""

from __future__ import annotations

from rcdrv.device import CONFIG_REGION, IrqKind, SetIrqs


def register(place: tuple[int, int, int], word: str | None) -> str:
    """Return what is in a register, in words."""
    return (
        f"{_value(word) if word is not None else 'nothing written'} in BAR{place[0]}+{place[1]:#x}"
    )


def told(op: str, fields: tuple[str, ...]) -> str:
    """Describe an event."""
    if op in "rwRW":
        region, offset, size = (int(field, 16) for field in fields[:3])
        place = "config space" if region == CONFIG_REGION else f"BAR{region}"
        place += f"+{offset:#x}"
        article = "an" if size == 1 else "a"
        if op == "r":
            return f"{article} {8 * size}-bit read of {place}"
        if op == "w":
            return f"{article} {8 * size}-bit write of {_value(fields[3])} to {place}"
        if op == "R":
            return f"a read of {size:#x} bytes at {place}"
        return f"a write of {size:#x} bytes (CRC {fields[3]}) at {place}"
    if op == "i":
        kind, flags, _, count = (int(field, 16) for field in fields[:4])
        name = IrqKind(kind).name
        if flags & (SetIrqs.ACTION_MASK | SetIrqs.ACTION_UNMASK):
            return f"the {'un' if flags & SetIrqs.ACTION_UNMASK else ''}masking of {name}"
        return f"the arming of {count} {name}" if count else f"the disarming of {name}"
    if op == "m":
        return "a DMA buffer mapped"
    if op == "u":
        return "a DMA buffer unmapped"
    return {"z": "a reset", "x": "the cut-off of the recording"}.get(op, op)


def _value(word: str) -> str:
    if not word.startswith("@"):
        return f"0x{word}"
    number, _, inside = word[1:].rstrip("^").partition("+")
    return f"the address{' (upper half)' if word.endswith('^') else ''} of DMA buffer {number}" + (
        f" + 0x{inside}" if inside not in ("", "0") else ""
    )
