"""Loops over the one step: training on tasks, measuring, running methods side by side."""
