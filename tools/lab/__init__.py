"""The QEMU lab: rcdrv against a stock Linux kernel's VFIO, with software endpoints as functions.

Start reading at :mod:`tools.lab.guest`; :mod:`tools.lab.__main__` is the command line.
"""
