"""vfio-user: the VFIO device model as messages over a UNIX socket, both ends of it."""
