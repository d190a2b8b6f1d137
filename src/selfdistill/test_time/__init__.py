"""Searches: one hard task at a time, from failures before the first success."""
