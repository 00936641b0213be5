"""Device types as data: what a device is, which registers it has, how its limit is set."""
