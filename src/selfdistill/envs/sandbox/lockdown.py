"""What a process gives up, for good, before it runs an untrusted program.

Three walls: Landlock (files), seccomp (system calls) and rlimits (amounts). They need neither root nor packages, and
hold inside a container. `isolation_level` names what this machine has.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import stat
import struct
import sys
from collections.abc import Sequence
from enum import StrEnum

from selfdistill.envs.sandbox.seccomp import build_filter, checked, install_filter, libc
from selfdistill.envs.sandbox.syscalls import ARCHITECTURES, this_architecture

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_FILE = 16, 32, 256
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEVICE}
_READ_ONLY = _READ_FILE | _READ_DIR
_EVERYTHING = (1 << 13) - 1 | _REFER | _TRUNCATE
_CHANGES = _EVERYTHING & ~(_READ_ONLY | 1)  # 1: to execute
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/shm", "/dev/ptmx", "/dev/pts")
_OF_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE
_OWN_DIRECTORY = _READ_ONLY | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE  # flat: no directories in it
_PR_SET_DEATH_SIGNAL, _PR_SET_NO_NEW_PRIVS = 1, 38
_GET_ACTION_AVAILABLE, _ACTION_ERRNO = 2, 0x00050000
_CAPABILITY_VERSION = 0x20080522
_INSTALLED = ("site-packages", "dist-packages")
_OPEN_FILES = 64
_STACK_BYTES = 160 << 20  # 50,000 calls of a sort key deep take 80 MiB


class IsolationLevel(StrEnum):
    """How far this machine can shut a program in, strongest first."""

    FULL = "landlock+seccomp+rlimits"
    NO_FILES = "seccomp+rlimits"  # no Landlock: the program can read and write what the user can
    NO_CALLS = "landlock+rlimits"  # no seccomp: the program can open sockets, start and signal processes
    LIMITS_ONLY = "rlimits"  # neither: an honest program is bounded, a hostile one is not


def isolation_level() -> IsolationLevel:
    """What the kernel offers to this process."""
    walls = {"landlock": landlock_abi() > 0, "seccomp": _has_seccomp(), "rlimits": True}
    return IsolationLevel("+".join(wall for wall, is_there in walls.items() if is_there))


def isolation_warning(level: IsolationLevel) -> str:
    """What is not protected at `level`; empty at `FULL`."""
    risks = {
        "Landlock": "programs can read and write every file that you can",
        "seccomp": "programs can open sockets, start processes and send signals",
    }
    missing = [f"no {wall} on this machine: {risk}" for wall, risk in risks.items() if wall.lower() not in level]
    return "; ".join(missing)


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends."""
    if sys.platform == "linux":
        libc().prctl(_PR_SET_DEATH_SIGNAL, 9, 0, 0, 0)


def lock_down(level: IsolationLevel, directory: str, *, memory_bytes: int, output_bytes: int, cpu_s: int) -> None:
    """Give up everything but `directory`, the standard library (read only) and the stated amounts.

    `memory_bytes` come on top of what is mapped already. Raises OSError when a wall of `level` cannot be put up.
    """
    _set_limits(memory_bytes, output_bytes, cpu_s)
    if "landlock" in level:
        streams = (("/dev/fd/0", _READ_FILE), ("/dev/fd/1", _WRITE_FILE | _TRUNCATE))  # /dev/stdin and /dev/stdout
        _restrict_files([(directory, _OWN_DIRECTORY), (_library(), _READ_ONLY), *streams, *_harmless()])
    _drop_capabilities()
    if "seccomp" in level:
        install_filter(build_filter(ARCHITECTURES[platform.machine()], os.getpid()))


def _has_seccomp() -> bool:
    architecture, action = this_architecture(), ctypes.c_uint32(_ACTION_ERRNO)
    if architecture is None:
        return False
    return bool(libc().syscall(architecture.seccomp, _GET_ACTION_AVAILABLE, 0, ctypes.byref(action)) == 0)


def _set_limits(memory_bytes: int, output_bytes: int, cpu_s: int) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: output_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: _mapped_bytes() + memory_bytes,
        resource.RLIMIT_STACK: _STACK_BYTES,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        soft = bound - 1 if limit == resource.RLIMIT_CPU else bound  # first a signal with the reason, then the end
        resource.setrlimit(limit, (soft, hard if limit == resource.RLIMIT_STACK else bound))


def _mapped_bytes() -> int:
    """The address space in use, so that limits are relative; 0 without /proc."""
    return int((read_proc("/proc/self/statm") or b"0").split()[0]) * resource.getpagesize()


def read_proc(path: str) -> bytes:
    """A file of /proc; empty when its process is gone or the kernel has no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def restrict_worker(level: IsolationLevel, directory: str) -> None:
    """What a worker and all its programs give up at `level`: every file but `directory`, /proc and the library.

    Of the library, what was installed besides Python itself is not readable. Programs give up more in `lock_down`, and
    have what both leave; here each entry of the library needs a rule, which would take each of them too long.
    """
    if "landlock" not in level:
        return
    with os.scandir(_library()) as entries:
        library = [(entry.path, _READ_ONLY) for entry in entries if entry.name not in _INSTALLED]
    own = ((directory, _EVERYTHING), (os.path.dirname(directory), _REMOVE_DIR), ("/proc", _READ_ONLY | _WRITE_FILE))
    _restrict_files([*own, *_harmless(), *library])


def restrict_writes(directories: Sequence[str]) -> None:
    """Give up changing any file but those beneath `directories` and the harmless devices; reading stays. Does nothing
    where there is no Landlock."""
    if landlock_abi():
        devices = [path for path in _DEVICES if os.path.exists(path)]
        _restrict_files([(path, _CHANGES) for path in (*directories, *devices)], among=_CHANGES)


def _library() -> str:
    return os.path.dirname(os.__file__)


def _harmless() -> list[tuple[str, int]]:
    """Open to all: /dev/null, and the time zones that `zoneinfo` reads."""
    rules = (("/dev/null", _READ_FILE | _WRITE_FILE), ("/usr/share/zoneinfo", _READ_ONLY))
    return [rule for rule in rules if os.path.exists(rule[0])]


def _restrict_files(rules: Sequence[tuple[str, int]], *, among: int = -1) -> None:
    """Give up all files but those beneath the paths of `rules`, and those but for the rights stated with them; of
    rights, those `among` them alone."""
    abi = landlock_abi()
    handled = sum(rights for since, rights in _RIGHTS_BY_ABI.items() if since <= abi) & among
    ruleset = checked(libc().syscall(_CREATE_RULESET, struct.pack("Q", handled), ctypes.c_size_t(8), 0))
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights & handled, descriptor)
        checked(libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
        os.close(descriptor)
    checked(libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    checked(libc().syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Even root then has to obey file modes and its own limits."""
    if architecture := this_architecture():
        checked(libc().syscall(architecture.capset, struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)))
