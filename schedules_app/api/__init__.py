"""Schedules below /v1/."""
