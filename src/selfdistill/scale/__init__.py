"""A run of many processes."""
