"""The Debian package, and the recipes for other distributions in the manual."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdrv import __version__
from rcdrv.cli import COMMANDS
from tests.programs import needed
from tools import deb
from tools.docs import examples

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guide/packages.md"
RULE = "udev/70-rcdrv.rules"
LIMIT = 120


def recipe(language: str) -> str:
    ((_, block),) = examples.blocks(PAGE.read_text(), language)
    return block


# -- Debian ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    needed("dpkg-deb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield deb.build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    folder = package.parent / "root"
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    return folder


def test_the_same_source_makes_the_same_package(package: Path, tmp_path: Path) -> None:
    environment = {"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, "-m", "tools.deb", tmp_path], cwd=ROOT, env=environment, check=True
    )
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()


def test_the_package_rings(unpacked: Path) -> None:
    library = unpacked / "usr/lib/python3/dist-packages"
    program = (unpacked / "usr/bin/rcdrv").read_text()
    code = f"import sys; sys.path.append({str(library)!r}); exec({program!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "--device", "sim:rk3588", "ring", "--bar", "4"],
        cwd=unpacked,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, "acknowledged" in done.stdout) == (0, True), done


def test_what_the_package_has_beside_the_library(unpacked: Path) -> None:
    rule = (unpacked / "usr/lib/udev/rules.d/70-rcdrv.rules").read_text()
    assert rule == (ROOT / RULE).read_text()
    (made,) = re.findall(
        r"^g (\S+) -$", (unpacked / "usr/lib/sysusers.d/rcdrv.conf").read_text(), re.M
    )
    assert set(re.findall(r'GROUP="(.*?)"', rule)) == {made}
    for command in COMMANDS:
        page = unpacked / f"usr/share/man/man1/rcdrv-{command}.1.gz"
        assert gzip.decompress(page.read_bytes()).startswith(b".")
    control = (unpacked / "DEBIAN/control").read_text()
    assert f"Version: {__version__}\n" in control
    assert "python3 (>= 3.10)" in control
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text()
    entry = (ROOT / "pyproject.toml").read_text()
    for line in deb.ENTRY_POINTS.splitlines():
        name, _, value = line.partition(" = ")
        assert not value or f'{name} = "{value}"' in entry
    for line in (unpacked / "DEBIAN/md5sums").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.md5((unpacked / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("script", ["postinst", "prerm"])
def test_the_maintainers_scripts_are_shell(unpacked: Path, script: str) -> None:
    path = unpacked / "DEBIAN" / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", path], check=True)


# -- recipes ---------------------------------------------------------------------------------------


def test_the_recipe_for_yocto() -> None:
    """By the grammar of BitBake's manual: assignments, inherit, and functions of shell."""
    text = recipe("bitbake").replace("\\\n", "")
    functions = re.findall(r"^([\w:]+)\(\) \{\n((?:    .*\n)+)\}$", text, re.M)
    rest = re.sub(r"^([\w:]+)\(\) \{\n((?:    .*\n)+)\}$", "", text, flags=re.M)
    values = {}
    for line in filter(None, rest.splitlines()):
        found = re.fullmatch(r'([\w:${}]+) (\+=|=) "([^"]*)"|inherit( [\w-]+)+', line)
        assert found, line
        values[found[1]] = found[3]
    digest = hashlib.md5((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert values["LIC_FILES_CHKSUM"] == f"file://LICENSE;md5={digest}"
    ((name, body),) = functions
    assert name == "do_install:append"
    subprocess.run(["sh", "-n", "-c", body.replace("${D}${", "${D_")], check=True)
    (source,) = re.findall(r"\$\{S\}/(\S+)", body)
    assert (ROOT / source).is_file()
    assert f"python3-rcdrv_{__version__}.bb" in PAGE.read_text()
    assert 'build-backend = "hatchling.build"' in (ROOT / "pyproject.toml").read_text()


def test_the_recipe_for_buildroot(tmp_path: Path) -> None:
    make = needed("make")
    (tmp_path / "python-rcdrv.mk").write_text(recipe("make"))
    (tmp_path / "Makefile").write_text(
        "INSTALL = install\nTARGET_DIR = target\npython-package = $(info called)\n"
        "include python-rcdrv.mk\n"
        f"{ROOT}/all:\n"
        "\t$($(PYTHON_RCDRV_POST_INSTALL_TARGET_HOOKS))\n"
        "\t@echo $(PYTHON_RCDRV_VERSION) $(PYTHON_RCDRV_LICENSE_FILES)\n"
        f".PHONY: {ROOT}/all\n"
    )
    done = subprocess.run([make, "-s"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["called", f"{__version__} LICENSE"]
    installed = tmp_path / "target/usr/lib/udev/rules.d/70-rcdrv.rules"
    assert installed.read_text() == (ROOT / RULE).read_text()


def test_the_options_of_buildroot() -> None:
    """Kconfig: statements behind one tab, help behind one more and two spaces."""
    first, *lines = recipe("kconfig").splitlines()
    assert re.fullmatch(r"config BR2_PACKAGE_\w+", first)
    statement = r'\tbool "[\w-]+"|\t(depends on|select) BR2_PACKAGE_\w+( # runtime)?|\thelp'
    helps = lines.index("\thelp") + 1
    assert all(re.fullmatch(statement, line) for line in lines[:helps])
    assert all(re.fullmatch(r"\t  \S.{,70}", line) for line in lines[helps:])
