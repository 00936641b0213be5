"""A node: what runs on a site computer."""
