"""The operators' console beyond forms and lists: its pages, who may do what, what stays live (ADR 0034)."""
