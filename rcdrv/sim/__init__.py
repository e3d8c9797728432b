"""The software endpoint: a PCIe endpoint controller and pci-epf-test, without a board.

It speaks vfio-user, so :mod:`rcdrv.vfio_user` and a QEMU guest see it as a real PCI function.
:mod:`rcdrv.sim.layout` describes endpoints as data, :mod:`rcdrv.sim.endpoint` builds one,
:mod:`rcdrv.sim.serve` serves it.
"""
