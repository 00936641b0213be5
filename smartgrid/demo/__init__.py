"""The demo: one command that runs the whole system, with simulated devices, on one machine."""
