"""The process that hands events out to those who listen (ADR 0027)."""
