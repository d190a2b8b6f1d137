"""Measurements of a model: what a context is worth, which tokens get the credit."""
