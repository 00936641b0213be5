"""The arbitration core: pure functions that tell what a device is to be held at, and why."""
