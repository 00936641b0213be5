"""Code that speaks to devices, one module a protocol; what is said comes from the profile."""
