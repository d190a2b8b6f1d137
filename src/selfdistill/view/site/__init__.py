"""`selfdistill view`: runs, searches and journals in a browser. Pages are in `static/`, numbers come as JSON."""
