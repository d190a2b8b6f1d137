"""The global random generators, seeded by name: code of a user's that draws from them repeats.

Nothing of ours draws from them; what we draw follows from generators of our own.
"""

from __future__ import annotations

import random
import sys
from hashlib import sha256


def seed_global(*names: object) -> None:
    """Seeds Python's `random`, and the global generators of numpy and torch where these are loaded, by these names: a
    run's seed, and whatever else the draws should depend on."""
    digest = sha256(" ".join(map(str, names)).encode("utf-8", "backslashreplace")).digest()
    random.seed(digest)
    short = int.from_bytes(digest[:4], "big")  # numpy takes 32 bits
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(short)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(short)
