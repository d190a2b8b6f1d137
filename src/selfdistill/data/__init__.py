"""From rows of data to tasks."""
