"""Record what passes between a driver and a device, and replay it to another driver."""
