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

from selfdistill.envs.sandbox.seccomp import build_filter, install_filter, libc
from selfdistill.envs.sandbox.syscalls import ARCHITECTURES

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_FILE = 16, 32, 256
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEVICE}
_READ_ONLY = _READ_FILE | _READ_DIR
_EVERYTHING = (1 << 13) - 1 | _REFER | _TRUNCATE
_OF_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE
_OWN_DIRECTORY = _READ_ONLY | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE  # flat: no directories in it
_PR_SET_DEATH_SIGNAL, _PR_SET_NO_NEW_PRIVS, _PR_GET_SECCOMP = 1, 38, 21
_SECCOMP, _CAPSET = {"x86_64": 317, "aarch64": 277}, {"x86_64": 126, "aarch64": 91}
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
    files, calls = landlock_abi() > 0, _has_seccomp()
    if files:
        return IsolationLevel.FULL if calls else IsolationLevel.NO_CALLS
    return IsolationLevel.NO_FILES if calls else IsolationLevel.LIMITS_ONLY


def isolation_warning(level: IsolationLevel) -> str:
    """What is not protected at `level`; empty at `FULL`."""
    open_files = "programs can read and write every file that you can"
    open_calls = "programs can open sockets, start processes and send signals"
    return {
        IsolationLevel.FULL: "",
        IsolationLevel.NO_FILES: f"no Landlock on this machine: {open_files}",
        IsolationLevel.NO_CALLS: f"no seccomp on this machine: {open_calls}",
        IsolationLevel.LIMITS_ONLY: f"neither Landlock nor seccomp on this machine: {open_files}; {open_calls}",
    }[level]


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
    if sys.platform != "linux":
        return
    if level in (IsolationLevel.FULL, IsolationLevel.NO_CALLS):
        streams = (("/dev/fd/0", _READ_FILE), ("/dev/fd/1", _WRITE_FILE | _TRUNCATE))  # /dev/stdin and /dev/stdout
        null = ("/dev/null", _READ_FILE | _WRITE_FILE)
        _restrict_files([(directory, _OWN_DIRECTORY), (_library(), _READ_ONLY), null, *streams, *_zones()])
    _drop_capabilities()
    if level in (IsolationLevel.FULL, IsolationLevel.NO_FILES):
        install_filter(build_filter(ARCHITECTURES[platform.machine()], os.getpid()))


def _has_seccomp() -> bool:
    number = _SECCOMP.get(platform.machine().replace("arm64", "aarch64"))
    if sys.platform != "linux" or number is None:
        return False
    action = ctypes.c_uint32(0x00050000)  # is the action "answer with an errno" available?
    return bool(libc().syscall(number, 2, 0, ctypes.byref(action)) == 0)


def _set_limits(memory_bytes: int, output_bytes: int, cpu_s: int) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: output_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: _mapped_bytes() + memory_bytes,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        soft = bound - 1 if limit == resource.RLIMIT_CPU else bound  # first a signal with the reason, then the end
        resource.setrlimit(limit, (soft, bound))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def _mapped_bytes() -> int:
    """The address space in use, so that limits are relative; 0 without /proc."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0
    pages = int(os.read(descriptor, 100).split()[0])
    os.close(descriptor)
    return pages * resource.getpagesize()


def restrict_worker(level: IsolationLevel, directory: str) -> None:
    """What a worker and all its programs give up at `level`: every file but `directory`, /proc and the library.

    Of the library, what was installed besides Python itself is not readable. Programs give up more in `lock_down`, and
    have what both leave; here each entry of the library needs a rule, which would take each of them too long.
    """
    if level not in (IsolationLevel.FULL, IsolationLevel.NO_CALLS):
        return
    with os.scandir(_library()) as entries:
        library = [(entry.path, _READ_ONLY) for entry in entries if entry.name not in _INSTALLED]
    own = ((directory, _EVERYTHING), (os.path.dirname(directory), _REMOVE_DIR), ("/proc", _READ_ONLY | _WRITE_FILE))
    _restrict_files([*own, ("/dev/null", _READ_FILE | _WRITE_FILE), *_zones(), *library])


def _library() -> str:
    return os.path.dirname(os.__file__)


def _zones() -> list[tuple[str, int]]:
    """The time zones that `zoneinfo` reads."""
    return [(path, _READ_ONLY) for path in ("/usr/share/zoneinfo",) if os.path.isdir(path)]


def _restrict_files(rules: Sequence[tuple[str, int]]) -> None:
    """Give up all files but those beneath the paths of `rules`, and those but for the rights stated with them."""
    abi = landlock_abi()
    handled = sum(rights for since, rights in _RIGHTS_BY_ABI.items() if since <= abi)
    attributes = ctypes.create_string_buffer(struct.pack("Q", handled), 8)
    ruleset = _checked(libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(8), 0))
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights & handled, descriptor), 12)
        _checked(libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
        os.close(descriptor)
    _checked(libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc().syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Even root then has to obey file modes and its own limits."""
    number = _CAPSET.get(platform.machine().replace("arm64", "aarch64"))
    if number is not None:
        header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
        _checked(libc().syscall(number, ctypes.create_string_buffer(header, 8), ctypes.create_string_buffer(nothing)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"lockdown: {os.strerror(number)}")
    return result
