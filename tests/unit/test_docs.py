"""The manual is true: it builds, its examples do what it shows, and its lists are complete."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from enum import IntFlag
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from rcdrv.cli import COMMANDS, build_parser, whole_parser
from rcdrv.epf_test import registers as epf_test
from rcdrv.epf_vntb import registers as epf_vntb
from rcdrv.errors import UsageError
from rcdrv.host.doctor import ROWS
from rcdrv.manual.grammar import command_tree
from rcdrv.sim import layout
from rcdrv.sim.functions import TABLES
from rcdrv.verdict import EXIT_STATUS, Reason, Verdict
from tools.docs import __main__ as docs
from tools.docs import examples

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
SESSIONS = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    for line, block in examples.blocks(page.read_text(), "console")
]


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of each row of the first table whose head begins with this cell."""
    table = False
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            if table:
                return
        elif table:
            if not set(line) <= set("| -"):
                yield cells
        else:
            table = line.startswith(f"| {heading} |")
    assert table, f"{page} has no table {heading}"


def headings(page: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.*)$", (DOCS / page).read_text(), re.MULTILINE)


# What Sphinx and its extensions deprecate among themselves.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated. Check CHANGES")

# -- the whole ------------------------------------------------------------------------------------


def test_it_builds_without_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every link inside of it is one of the things that Sphinx would warn of."""
    assert docs.build(tmp_path) == 0, capfd.readouterr().err
    page = (tmp_path / "commands/ring.html").read_text()
    assert "--cycles" in page
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page)
    assert not loaded, "a reader's browser is sent elsewhere"


def test_a_link_to_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/conf.py").write_text(
        'extensions = ["myst_parser"]\nmyst_heading_anchors = 4\n'
    )
    for target, status in (("#here", 0), ("#there", 1), ("page.md", 1)):
        (tmp_path / "docs/index.md").write_text(f"# Here\n\n[x]({target})\n")
        assert docs.build(tmp_path / "html") == status, target


# -- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "block"), SESSIONS)
def test_examples_do_what_they_show(page: Path, block: str) -> None:
    steps = examples.session(block)
    for step, printed in zip(steps, examples.run(steps), strict=True):
        assert examples.agree(step.shown, printed), (
            f"{step.command}\nprinted:\n"
            + "\n".join(printed)
            + "\nshown:\n"
            + "\n".join(step.shown)
        )


def test_examples_are_compared_by_what_they_say() -> None:
    shown = ["ring 1: acknowledged in 112.4 us, status 0x00000240"]
    assert examples.agree(shown, ["ring 1: acknowledged in 9.7 us, status 0x00000240"])
    assert not examples.agree(shown, ["ring 1: acknowledged in 9.7 us, status 0x00000200"])
    assert not examples.agree(shown, [*shown, *shown])
    assert examples.agree(["a", "...", "d"], ["a", "b", "c", "d"])
    assert not examples.agree(["a", "...", "d"], ["a", "b", "c"])


def test_an_example_that_fails_unseen_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with 2"):
        examples.run(examples.session("$ rcdrv ring --bar 9\n"))
    failing = examples.session("$ rcdrv ring --bar 9\nrcdrv: ...\n$ echo $?\n2\n")
    assert examples.run(failing)[1] == ["2"]


RUN_BY = {
    "console": "test_examples_do_what_they_show",
    "sh": "test_commands_that_cannot_be_run_can_be_parsed",
    "python": "test_programs_are_run_somewhere",
    "toml": "test_layouts_can_be_loaded",
    "bitbake": "tests/unit/test_packages.py",
    "kconfig": "tests/unit/test_packages.py",
    "make": "tests/unit/test_packages.py",
    "js": "tools/polkit_rule.py",
}
"""What runs or reads the blocks of each language."""

SHOWN = {"text", "ini", "dts"}
"""What is only shown: output, a systemd unit, a device tree."""


def test_every_language_of_a_block_has_who_runs_it() -> None:
    found = {
        language
        for page in PAGES
        for language in re.findall(r"^ *```(\w+)$", page.read_text(), re.MULTILINE)
    }
    assert found == set(RUN_BY) | SHOWN
    for who in RUN_BY.values():
        assert who in globals() or (ROOT / who).exists()


def test_programs_are_run_somewhere() -> None:
    """The manual's by test_api.py, test_libraries.py and the lab; README's here."""
    pages = {
        str(page.relative_to(ROOT))
        for page in PAGES
        if list(examples.blocks(page.read_text(), "python"))
    }
    assert pages == {"README.md", "docs/api.md", "docs/vfio.md", "docs/vfio-user.md"}
    ((_, code),) = examples.blocks((ROOT / "README.md").read_text(), "python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("BAR4+0xa0 "), done.stderr


def test_layouts_can_be_loaded(tmp_path: Path) -> None:
    found = [block for page in PAGES for _, block in examples.blocks(page.read_text(), "toml")]
    assert found
    for block in found:
        (tmp_path / "board.toml").write_text(block)
        assert layout.load_layout(str(tmp_path / "board.toml")).description


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each rcdrv command in a block that is not run."""
    for page in PAGES:
        for _, block in examples.blocks(page.read_text(), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if set(word) <= set("();<>|&"):
                        if "rcdrv" in words:
                            yield page.name, words[words.index("rcdrv") + 1 :]
                        words = []
                    else:
                        words.append(word)


def test_commands_that_cannot_be_run_can_be_parsed() -> None:
    parser = build_parser(list(COMMANDS))
    found = list(commands())
    assert len(found) > 20
    for page, words in found:
        try:
            parser.parse_args(words)
        except UsageError as error:
            pytest.fail(f"{page}: rcdrv {shlex.join(words)}: {error.message}")


def test_options_in_the_text_exist() -> None:
    tree = command_tree(whole_parser())
    known = {one.path: one for one in tree.walk()}
    for page in PAGES:
        for text in re.findall(r"`rcdrv ([^`]*)`", page.read_text()):
            words = text.split()
            path: tuple[str, ...] = ("rcdrv",)
            for word in words:
                if (*path, word) in known:
                    path = (*path, word)
            assert len(path) > 1 or words[0].startswith("-"), f"{page.name}: rcdrv {text}"
            command = known[path]
            flags = {flag for one in (*command.options, *command.common) for flag in one.flags}
            used = {word.partition("=")[0] for word in words if re.match("--?[a-zA-Z]", word)}
            assert used <= flags, f"{page.name}: rcdrv {text}"


# -- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_with_its_usage(command: str) -> None:
    text = (DOCS / f"commands/{command}.md").read_text()
    assert f"```{{usage}} {command}\n" in text
    assert f"]({command}.md)" in (DOCS / "commands/index.md").read_text()


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [command for command in COMMANDS if f"`rcdrv {command}" not in text] == []


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_reason_is_explained() -> None:
    entries = re.split(r"^### ", (DOCS / "reference/verdicts.md").read_text(), flags=re.MULTILINE)
    named = [entry.split("\n")[0].strip("`") for entry in entries[1:]]
    assert sorted(named) == sorted(reason.value for reason in Reason)
    assert all("*Look at:*" in entry for entry in entries[1:])


def test_every_verdict_is_explained_with_its_status() -> None:
    told = {cells[0].strip("`"): cells[2] for cells in rows("reference/verdicts.md", "verdict")}
    assert set(told) == {verdict.value for verdict in Verdict}
    for verdict, status in EXIT_STATUS.items():
        assert told[verdict.value] == str(status)


def test_every_row_of_the_doctor_is_explained() -> None:
    assert headings("guide/troubleshooting.md", 3) == list(ROWS)
    shown = (DOCS / "commands/doctor.md").read_text()
    assert re.findall(r"^(?:OK|not OK|--) +(\S+(?: \S+)*)  ", shown, re.MULTILINE) == list(ROWS)


@pytest.mark.parametrize(
    ("head", "table"),
    [
        ("key", layout.SCHEMA),
        ("key of a BAR", layout.BAR_SCHEMA),
        ("key of the doorbell", layout.DOORBELL_SCHEMA),
    ],
)
def test_every_key_of_a_layout_is_explained(head: str, table: dict[str, object]) -> None:
    told = [
        name
        for cells in rows("guide/software-endpoint.md", head)
        for name in re.findall(r"`(\w+)`", cells[0])
    ]
    assert sorted(told) == sorted(table)


def test_every_key_of_a_vntb_layout_is_explained() -> None:
    text = (DOCS / "guide/software-endpoint.md").read_text().partition("`[vntb]`")[2]
    told = set(re.findall(r"`(\w+)`", text))
    for family in ("mw{}", "mw{}_bar"):
        if family.format(1) in told and family.format(4) in told:
            told |= {family.format(number) for number in range(1, 5)}
    assert set(TABLES["vntb"].schema) <= told


def test_the_steps_for_a_board_make_what_its_preset_is() -> None:
    checked = []
    for section in re.split(r"^### ", (DOCS / "guide/board.md").read_text(), flags=re.MULTILINE):
        preset = re.search(r"Preset: `sim:([\w-]+)`", section)
        if preset:
            steps = dict(
                re.findall(r"^echo (\w+) > .*/(vendorid|deviceid)$", section, re.MULTILINE)
            )
            known = layout.load_layout(preset[1])
            assert {name: int(value, 16) for value, name in steps.items()} == {
                "vendorid": known.vendor,
                "deviceid": known.device,
            }
            checked.append(preset[1])
    assert checked == ["rcar-s4", "rk3588"]


# -- architecture ---------------------------------------------------------------------------------


def rooms() -> list[str]:
    """The parts of the package from the top down, as the page on the architecture lists them."""
    listed = (DOCS / "architecture.md").read_text().partition("Imports go down")[2]
    listed = listed.partition("\n`")[0]
    return re.findall(r"^    (\w+)(?:/|\.py) ", listed, re.MULTILINE)


def imported(source: Path, *, inside: bool = False) -> Iterator[str]:
    """What a module imports of rcdrv: when it is imported, or also inside its functions."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "rcdrv":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rcdrv."):
            yield from (f"{node.module}.{alias.name}"[6:] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name[6:] for a in node.names if a.name.startswith("rcdrv."))


def test_the_architecture_names_every_part() -> None:
    package = ROOT / "rcdrv"
    parts = {path.stem for path in package.glob("*.py")}
    parts |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(rooms()) == sorted(parts - {"__init__", "__main__"})


def test_the_architecture_names_files_that_are_there() -> None:
    text = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`((?:rcdrv|docs|tests)/[^`]*)`", text)
    assert len(named) > 10
    assert [path for path in named if not list(ROOT.glob(path.replace("NAME", "*")))] == []


def test_imports_go_down() -> None:
    order = rooms()
    for source in (ROOT / "rcdrv").rglob("*.py"):
        room = source.relative_to(ROOT / "rcdrv").parts[0].removesuffix(".py")
        if room in order:
            above = order[: order.index(room)]
            assert not set(above) & {name.split(".")[0] for name in imported(source)}, source


def test_imports_have_no_circles() -> None:
    """Inside functions too: two modules that need each other are one, or have a third in them."""
    package = ROOT / "rcdrv"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph = TopologicalSorter(
        {
            name: {
                used if used in modules else used.rpartition(".")[0]
                for used in imported(path, inside=True)
            }
            & modules.keys() - {name}
            for name, path in modules.items()
        }
    )
    graph.prepare()  # raises CycleError, which names them


def test_no_module_is_long_without_a_reason() -> None:
    """A long module says in its docstring why it is one."""
    found = set()
    for source in (ROOT / "rcdrv").rglob("*.py"):
        text = source.read_text()
        if text.count("\n") > 450 and "longer than others on purpose" not in text:
            found.add(source.relative_to(ROOT / "rcdrv").as_posix())
    assert found == set()


# -- registers ------------------------------------------------------------------------------------


def test_the_registers_of_epf_test() -> None:
    told = {cells[1]: int(cells[0], 16) for cells in rows("reference/epf-test.md", "offset")}
    assert told == {register.name: register.value for register in epf_test.Reg}


@pytest.mark.parametrize(
    ("section", "flags"),
    [
        ("COMMAND", epf_test.Command),
        ("STATUS", epf_test.Status),
        ("FLAGS", epf_test.Flags),
        ("CAPS", epf_test.Caps),
    ],
)
def test_the_bits_of_epf_test(section: str, flags: type[IntFlag]) -> None:
    text = (DOCS / "reference/epf-test.md").read_text()
    text = re.split(r"^## ", text.partition(f"\n## {section}\n")[2], flags=re.MULTILINE)[0]
    told = re.findall(r"^\| (\d+) \| (0x\w+) \| (\w+) \|", text, re.MULTILINE)
    assert [(name, int(value, 16)) for _, value, name in told] == [
        (one.name, one.value) for one in flags
    ]
    assert all(1 << int(bit) == int(value, 16) for bit, value, _ in told)


def test_the_answers_of_epf_test() -> None:
    told = {cells[2]: set(cells[3].split(" or ")) for cells in rows("reference/epf-test.md", "bit")}
    answers = {}
    for command in epf_test.Command:
        bits = epf_test.ANSWERS.get(command, epf_test.Status.IRQ_RAISED)
        answers[command.name] = {bit.name for bit in epf_test.Status if bit & bits}
    assert told == answers


def test_the_registers_of_epf_vntb() -> None:
    plain, arrays = {}, {}
    for offset, width, name, *_ in rows("reference/epf-vntb.md", "offset"):
        if name.endswith("[n]"):
            arrays[name] = int(offset.removesuffix(" + 4n"), 16)
        else:
            plain[name] = (int(offset, 16), int(width))
    assert plain == {
        register.name: (register.value, 16 if register in epf_vntb.NARROW else 32)
        for register in epf_vntb.Reg
    }
    assert arrays == {"DB_DATA[n]": epf_vntb.db_data(0), "DB_OFFSET[n]": epf_vntb.db_offset(0)}
    assert epf_vntb.db_offset(1) - epf_vntb.db_offset(0) == 4


def test_the_commands_of_epf_vntb() -> None:
    told = {cells[1]: int(cells[0]) for cells in rows("reference/epf-vntb.md", "value")}
    assert told == {command.name: command.value for command in epf_vntb.Command}


def test_the_bars_of_epf_vntb() -> None:
    for ident, *bars in rows("reference/epf-vntb.md", "ID"):
        vendor, device = (int(part, 16) for part in ident.split(":"))
        known = epf_vntb.map_of(vendor, device)
        assert known is not None
        windows = ", ".join(map(str, known.windows))
        assert bars == [*map(str, (known.control, known.peer_spad, known.doorbell)), windows]
