"""Man pages and shell completion, made from the command-line parser.

``rcdrv setup`` prints them, the build puts them into the wheel, and the manual's command pages
use the same :class:`~rcdrv.manual.grammar.Command` tree.
"""

from __future__ import annotations

from rcdrv.manual import completion, man
from rcdrv.manual.grammar import Command

COMPLETIONS = {
    "bash": ("share/bash-completion/completions/rcdrv", completion.BASH),
    "zsh": ("share/zsh/site-functions/_rcdrv", completion.ZSH),
    "fish": ("share/fish/vendor_completions.d/rcdrv.fish", completion.FISH),
}
"""Of each shell: where its completion belongs, below a prefix such as /usr/local or that of a
virtual environment; and the script."""

MAN_FOLDER = "share/man/man1"


def data_files(tree: Command) -> dict[str, str]:
    """Return {path below the prefix: contents} of the files installed beside the package."""
    pages = {f"{MAN_FOLDER}/{name}": text for name, text in man.pages(tree).items()}
    return {**dict(COMPLETIONS.values()), **pages}
