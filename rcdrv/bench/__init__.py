"""How long an endpoint's doorbell, memory, transfers and interrupts take, as distributions."""
