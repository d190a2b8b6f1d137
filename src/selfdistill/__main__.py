"""`python -m selfdistill` is the command `selfdistill`."""

from selfdistill.cli import main

main()
