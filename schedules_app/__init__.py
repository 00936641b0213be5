"""Setpoints by the quarter hour, for one category of a site on one UTC day."""
