"""Manual text beyond the parser's: addresses, environment, files, exit statuses."""

from __future__ import annotations

from rcdrv.address import SCHEMES

ADDRESSES = tuple(form for scheme in SCHEMES for form in scheme.forms.items())
"""Forms of an endpoint's address."""

EXIT_STATUSES = {
    0: "it passed, or was done as asked",
    1: "the endpoint failed, or a fuzzer found something",
    2: "usage: an option, a preset or a file that does not exist or makes no sense",
    3: "the host is not ready; the message says the cure, and rcdrv doctor looks for it",
    4: "skipped: the endpoint does not support it, and says so",
    5: "the device was lost",
    70: "a bug in rcdrv",
    130: "stopped by Ctrl-C; 128 and the signal's number for other signals",
}
"""Exit statuses. See :mod:`rcdrv.errors` and :data:`rcdrv.verdict.EXIT_STATUS`."""

ENVIRONMENT = (
    ("RCDRV_DEVICE", "the address of the endpoint, where --device does not name one"),
    (
        "RCDRV_BACKEND",
        "group, iommufd or noiommu: the way through kernel VFIO, instead of the best there is; "
        "sysfs: without VFIO",
    ),
    ("RCDRV_TRACEBACK", "if set, a bug in rcdrv shows its traceback"),
)
"""Environment variables that rcdrv reads."""

FILES = (
    ("/etc/udev/rules.d/70-rcdrv.rules", "where the rule of rcdrv setup udev belongs"),
    ("/run/rcdrv", "which driver rcdrv bind took each function from"),
    ("/dev/vfio", "the nodes of VFIO that have to be open to the user"),
)
"""Files outside the package."""
