"""Tools for developing selfdistill, run from the top of the repository. They are not part of the package."""
