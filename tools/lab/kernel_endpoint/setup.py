"""Shell script that creates a layout's function in the endpoint's configfs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields

from rcdrv.sim.description import BarType, Layout
from rcdrv.sim.epf_vntb import VntbLayout, VntbPeer
from rcdrv.sim.epf_vntb import settings as vntb_settings
from tools.lab.kernel_endpoint.build import MODULES

FOLDER = "/opt/endpoint"
CONFIGFS = "/sys/kernel/config/pci_ep"
FUNCTIONS = {"epf_test": "pci_epf_test", "epf_vntb": "pci_epf_vntb"}
PEERS = {
    VntbPeer.NONE: (),
    VntbPeer.PINGPONG: ("ntb_pingpong",),
    VntbPeer.NETDEV: ("ntb_transport", "ntb_netdev"),
    VntbPeer.TOOL: ("ntb_tool",),
}

_LOAD = """\
mount -t configfs configfs /sys/kernel/config || exit
mount -t debugfs debugfs /sys/kernel/debug
controllers={configfs}/controllers
for try in $(seq 100); do
    controller=$(ls $controllers 2>/dev/null) && test -n "$controller" && break
    sleep 0.05
done
test -n "$controller" || {{ echo "no endpoint controller appeared" >&2; exit 1; }}
"""
_MAKE = """\
function={configfs}/functions/{function}/func1
mkdir $function || exit
inner=$function/{function}.0
for try in $(seq 100); do test -d $inner && break; sleep 0.02; done
set_to() {{
    for folder in $function $inner; do
        test -e $folder/$1 || continue
        echo $2 >$folder/$1 && return
        echo "cannot set $1 to $2" >&2; exit 1
    done
    echo "{function} has no $1: it has $(cd $function; ls; cd $inner; ls)" >&2; exit 1
}}
"""
START = """\
controller=$(ls -d /sys/kernel/config/pci_ep/controllers/*)
echo 1 >$controller/start
"""
STOP = START.replace("echo 1", "echo 0")


def attributes(layout: Layout) -> dict[str, str]:
    """Return the values of attributes in configfs, by name."""
    values = {"vendorid": f"{layout.vendor:#x}", "deviceid": f"{layout.device:#x}"}
    if layout.msi:
        values["msi_interrupts"] = str(layout.msi)
    if layout.msix:
        values["msix_interrupts"] = str(layout.msix)
    if layout.function == "epf_test":
        for index, bar in enumerate(layout.bars):
            if bar is not None and bar.type in (BarType.PROGRAMMABLE, BarType.RESIZABLE):
                values[f"bar{index}_size"] = str(bar.size)
        return values
    for field in fields(VntbLayout):
        value = getattr(vntb_settings(layout), field.name)
        is_bar = field.name.endswith("_bar")
        if not field.name.startswith("peer") and not (value < 0 if is_bar else value == 0):
            values[field.name] = str(value)
    values |= {"vntb_vid": "0x1912", "vntb_pid": "0x0030", "vbus_number": "0x10"}
    return values


def script(layout: Layout, settings: Mapping[str, str]) -> str:
    """Return a script that loads the modules, creates the function, and starts it.

    :param settings: further attributes, applied last
    """
    names = {"configfs": CONFIGFS, "function": FUNCTIONS[layout.function]}
    peers = {module for modules in PEERS.values() for module in modules}
    lines = [f"modprobe configfs 2>/dev/null; cd {FOLDER}"]
    lines += [f"insmod {module}.ko || exit" for module in MODULES if module not in peers]
    lines += [_LOAD.format(**names), _MAKE.format(**names)]
    for name, value in {**attributes(layout), **settings}.items():
        lines.append(f"set_to {shlex.quote(name)} {shlex.quote(value)}")
    bind = "ln -s $function $controllers/$controller/ || exit"
    if layout.function == "epf_vntb":
        config = vntb_settings(layout)
        options = {
            "ntb_pingpong": f" delay_ms={config.peer_delay_ms}",
            "ntb_transport": f" max_num_clients={config.peer_max_clients}",
        }
        load = [
            f"insmod {module}.ko{options.get(module, '')} || exit"
            for module in PEERS[vntb_settings(layout).peer]
        ]
        # ntb_netdev loads only with a device of ntb_transport, which binding creates
        # (ntb_transport_register_client_dev()).
        lines += [*load[:1], bind, *load[1:], START]
    else:
        lines += [bind, START]
    if vntb_settings(layout).peer is VntbPeer.NETDEV and layout.function == "epf_vntb":
        lines.append(_NETWORK.format(address=vntb_settings(layout).peer_ip))
    return "\n".join(lines)


# The interface appears when the link is up on both sides, so the script waits in the background.
_NETWORK = """\
(
    until interface=$(ls /sys/class/net | grep -v '^lo$'); do sleep 0.2; done
    ip addr add {address}/24 dev $interface
    ip link set $interface up
) </dev/null >/dev/null 2>&1 &
"""
