"""The command line: parse, call the library, print."""

from selfdistill.cli.app import app, main

__all__ = ["app", "main"]
