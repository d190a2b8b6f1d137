"""Shapes of the wire between a model and the programs that call it."""
