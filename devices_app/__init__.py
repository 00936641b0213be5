"""Device types, devices, and the configuration nodes get from them."""
