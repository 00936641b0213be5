"""Schedules at the console: who has planned what for the next days, and a day to edit by the quarter hour."""
