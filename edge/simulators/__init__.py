"""Devices on real sockets, built from their profiles, with physics enough for believable curves."""
