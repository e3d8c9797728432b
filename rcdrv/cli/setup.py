"""Install the files that accompany rcdrv, or print them.

udev: the rule that binds endpoints to vfio-pci and gives their nodes to the group rcdrv, for all
users. completion: of bash, zsh or fish, for this user. man: the manual pages, for this user.

A package installed into /usr or /usr/local has completion and pages in place already; a virtual
environment (pipx) has them below itself, where no shell looks.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rcdrv.cli.common import HOST, show
from rcdrv.errors import HostError, UsageError
from rcdrv.files import make_folder, replace_file
from rcdrv.wait import Cancel

RULE = "70-rcdrv.rules"
RULES_FOLDER = Path("/etc/udev/rules.d")

AFTER_THE_RULE = """\
then, as root:
    groupadd --system rcdrv
    usermod --append --groups rcdrv USER            # and USER has to log in again
    udevadm control --reload
    udevadm trigger --action=add --subsystem-match=pci --subsystem-match=vfio \\
        --subsystem-match=vfio-dev --subsystem-match=misc"""

COMMON_OPTIONS = HOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    udev = parts.add_parser("udev", help="the udev rule")
    completion = parts.add_parser("completion", help="completion of a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    man = parts.add_parser("man", help="the manual pages")
    man.add_argument("page", nargs="?", metavar="COMMAND", help="only the page of this command")
    for part in (udev, completion, man):
        part.add_argument("--print", action="store_true", help="print it; change nothing")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    del cancel  # there are no waits
    files, after = {"udev": _udev, "completion": _completion, "man": _man}[args.part](args)
    if args.print:
        for text in files.values():
            print(text, end="")
        return 0
    for path, text in files.items():
        _write(path, text)
    written = [str(path) for path in files]
    return show(args, {"written": written}, [*(f"wrote {path}" for path in written), after])


def _udev(_args: argparse.Namespace) -> tuple[dict[Path, str], str]:
    return {RULES_FOLDER / RULE: udev_rule()}, AFTER_THE_RULE


def udev_rule() -> str:
    """Return the rule from the package, where the build puts it, or from the source tree."""
    from importlib.resources import files  # the package may be in an archive

    for rule in (files("rcdrv.manual") / RULE, Path(__file__).parents[2] / "udev" / RULE):
        if rule.is_file():
            return rule.read_text(encoding="utf-8")
    raise HostError(f"{RULE} is not in this installation", hint="install rcdrv again")


def _completion(args: argparse.Namespace) -> tuple[dict[Path, str], str]:
    from rcdrv.manual import COMPLETIONS

    data, config = _folder("XDG_DATA_HOME", ".local/share"), _folder("XDG_CONFIG_HOME", ".config")
    path, after = {
        "bash": (
            data / "bash-completion/completions/rcdrv",
            "new shells have it, where the package bash-completion is installed; for this one: "
            ". <(rcdrv setup completion bash --print)",
        ),
        "zsh": (
            data / "zsh/site-functions/_rcdrv",
            "zsh looks there with this in ~/.zshrc, before compinit: "
            f"fpath+=({data / 'zsh/site-functions'})",
        ),
        "fish": (config / "fish/completions/rcdrv.fish", "fish has it from now on"),
    }[args.shell]
    return {path: COMPLETIONS[args.shell][1]}, after


def _man(args: argparse.Namespace) -> tuple[dict[Path, str], str]:
    from rcdrv.cli import whole_parser
    from rcdrv.manual import man
    from rcdrv.manual.grammar import command_tree

    pages = man.pages(command_tree(whole_parser()))
    if args.page:
        name = f"rcdrv-{args.page}.1"
        if name not in pages:
            raise UsageError(f"there is no command {args.page!r}", hint="rcdrv --help")
        pages = {name: pages[name]}
    folder = _folder("XDG_DATA_HOME", ".local/share") / "man/man1"
    after = "man looks there if ~/.local/bin is in PATH; else: man -l FILE"
    return {folder / name: text for name, text in pages.items()}, after


def _folder(variable: str, default: str) -> Path:
    """Return a folder of this user by the XDG base directory specification."""
    named = os.environ.get(variable, "")
    return Path(named) if named.startswith("/") else Path.home() / default


def _write(path: Path, text: str) -> None:
    try:
        make_folder(path.parent)
        replace_file(path, text.encode("utf-8"), mode=0o644)
    except (HostError, UsageError) as error:
        raise HostError(error.message, hint="as root; or with --print, and put it there") from None
