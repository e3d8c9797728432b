"""Record the calls between a driver and a device, and replay them to another driver."""
