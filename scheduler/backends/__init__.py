"""The backends: each turns one request into one answer (`base.Backend`)."""
