"""A seccomp filter as classic BPF: an allow-list, with the arguments of a few calls checked.

What is refused matters most: new processes, `execve`, sockets, signals to others, other processes' memory, changes of
owner, mode, times or attributes (Landlock does not cover those), and lifting one's own limits.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct

from selfdistill.envs.sandbox.syscalls import X86_64, Architecture

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_O_TRUNC, _O_ACCMODE = 0x200, 0x3
# Dup, descriptor flags, status flags, record locks. Not F_SETOWN, F_SETSIG, F_NOTIFY, F_SETLEASE: they send signals.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
_PASS: Instruction = (_RETURN, 0, 0, _ALLOW)
_REFUSE: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def build_filter(architecture: Architecture, own_pid: int) -> bytes:
    """The filter of one process, as an array of `struct sock_filter`; signals may only go to `own_pid`."""
    kill = (_RETURN, 0, 0, _KILL)
    program = [_load(_ARCH), (_JUMP_EQUAL, 1, 0, architecture.audit), kill, _load(_NUMBER)]
    if architecture is X86_64:
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), kill]
    checks = _checks(own_pid)
    for name, number in architecture.calls.items():
        body = checks.get(name, [_PASS])
        program += [(_JUMP_EQUAL, 0, len(body), number), *body]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in [*program, _REFUSE])


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library; a worker loads it before it forks."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """The result of a call of the C library. Raises OSError for a failure."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"lockdown: {os.strerror(number)}")
    return result


def install_filter(filter_bytes: bytes) -> None:
    """Bind the calling thread and all it starts. Raises OSError when the kernel refuses."""
    buffer = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    program = struct.pack("HP", len(filter_bytes) // 8, ctypes.addressof(buffer))  # a struct sock_fprog
    checked(libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    checked(libc().prctl(_PR_SET_SECCOMP, _FILTER_MODE, program, 0, 0))


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _argument(index: int, *, high: bool = False) -> Instruction:
    return _load(_ARGUMENTS + 8 * index + (4 if high else 0))


def _checks(own_pid: int) -> dict[str, list[Instruction]]:
    """What follows the match of a call that is not let through whatever its arguments."""
    done: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | 0)]  # at once: no program makes the disk work
    # Their flags are behind a pointer; callers fall back to the older call.
    no_such_call: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    to_itself = [_argument(0), *_one_of((own_pid,))]
    # Truncating without asking to write slips past older Landlock.
    not_truncating = [(_AND, 0, 0, _O_TRUNC | _O_ACCMODE), (_JUMP_EQUAL, 0, 1, _O_TRUNC), _REFUSE, _PASS]
    return {
        "fsync": done, "fdatasync": done, "msync": done, "clone3": no_such_call, "openat2": no_such_call,
        "kill": to_itself, "tgkill": to_itself, "tkill": to_itself,
        "clone": [_argument(0), (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD), _PASS, _REFUSE],  # threads, never processes
        "open": [_argument(1), *not_truncating],
        "openat": [_argument(2), *not_truncating],
        "prlimit64": [  # reading limits, not setting them
            _argument(2), (_JUMP_EQUAL, 0, 3, 0),
            _argument(2, high=True), (_JUMP_EQUAL, 0, 1, 0), _PASS, _REFUSE,
        ],
        "fcntl": [_argument(1), *_one_of(_FCNTL_COMMANDS)],
        "ioctl": [_argument(1), *_one_of(_IOCTL_COMMANDS)],
    }  # fmt: skip


def _one_of(values: tuple[int, ...]) -> list[Instruction]:
    """Allow when the loaded word is one of `values`."""
    last = len(values) - 1
    tests = [(_JUMP_EQUAL, last - i, int(i == last), value) for i, value in enumerate(values)]
    return [*tests, _PASS, _REFUSE]
