"""Show the test registers of pci-epf-test, decoded bit by bit."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rcdrv.cli.common import ENDPOINT, RECORD, drive, print_json, seconds
from rcdrv.cli.reconnect import add_reconnect, persist
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg, decode
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.wait import Cancel

COMMON_OPTIONS = (*ENDPOINT, *RECORD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch", action="store_true", help="keep reading and print changes until stopped"
    )
    add_reconnect(parser)
    parser.add_argument(
        "--interval", type=seconds, default=0.1, metavar="S", help="for --watch (default 0.1)"
    )


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.watch and args.json:
        raise UsageError("--watch prints lines, not one JSON document")
    found: dict[str, Any] = {}

    def use(function: Function) -> None:
        driver = drive(args, function)
        values = read_all(driver)
        if args.json:
            found.update(document(driver, values))
            return
        print(f"{function.address}  test registers in BAR{driver.reg_bar}")
        for register, value in values.items():
            print(line(register, value))
        while args.watch:
            sys.stdout.flush()
            function.pause(args.interval)
            now = read_all(driver)
            for register, value in now.items():
                if value != values[register]:
                    print(line(register, value))
            values = now

    persist(args, cancel, use)
    if args.json:
        print_json(found)
    return 0


def read_all(driver: EpfTest) -> dict[Reg, int]:
    return {register: driver.read(register) for register in Reg}


def line(register: Reg, value: int) -> str:
    return (
        f"{int(register):#04x} {register.name:13} {value:#010x} {decode(register, value)}".rstrip()
    )


def document(driver: EpfTest, values: dict[Reg, int]) -> dict[str, Any]:
    return {
        "device": driver.function.address,
        "reg_bar": driver.reg_bar,
        "registers": {
            register.name: {
                "offset": int(register),
                "value": value,
                "meaning": decode(register, value),
            }
            for register, value in values.items()
        },
    }
