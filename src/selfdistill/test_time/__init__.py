"""Test-time search: solves single hard tasks, with feedback before the first success."""
