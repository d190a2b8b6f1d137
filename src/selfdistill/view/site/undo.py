"""Undo of a version of the weights, by the server that answers with it: its address and its token are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from selfdistill.errors import RunError
from selfdistill.view.site.journal import journal_of
from selfdistill.view.site.library import is_here

WAIT_S = 60.0  # the server loads the weights of the version before


def undo(journal: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the served version of a journal, if it is still `version`, and returns all versions. Raises `RunError` for
    an address beyond this machine, for the server of another journal, and for what the server refuses."""
    base, token = str(body.get("url", "")).rstrip("/"), str(body.get("token", ""))
    address = urlsplit(base)
    if address.scheme != "http" or not is_here(address.netloc):
        do = "give the address that `selfdistill serve` printed, such as http://127.0.0.1:8321/v1"
        raise RunError("the server should be one of this machine", got=base[:200], do=do)
    own = {(one["id"], one["created"]): one["state"] for one in journal_of(journal, "")["versions"]}
    theirs = _asked(f"{base}/selfdistill/versions", token)
    if own != {(one["id"], one["created"]): one["state"] for one in theirs["data"]}:
        raise RunError(
            "this server has another journal", got=base, do="give the address of the one that has this journal"
        )
    if theirs["served"] != body.get("version"):
        got = f"version {theirs['served']} is served"
        raise RunError("the served version has changed meanwhile", got=got, do="look at the versions, then undo again")
    return _asked(f"{base}/selfdistill/undo", token, b'{"versions": 1}')


def _asked(url: str, token: str, body: bytes | None = None) -> dict[str, Any]:
    """The reply of the server. Raises `RunError`."""
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with urlopen(Request(url, body, headers), timeout=WAIT_S) as reply:
            found: dict[str, Any] = json.load(reply)
    except HTTPError as error:
        answer = error.read(10_000).decode(errors="replace")
        raise RunError("the server refuses", got=f"{error.code}: {_message(answer)}") from error
    except (URLError, OSError, ValueError) as error:
        do = "start it, or check its address"
        raise RunError("the server does not answer", got=f"{url}: {error}", do=do) from error
    return found


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
