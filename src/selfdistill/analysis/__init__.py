"""Measurements of a model: context gain and token credit."""
