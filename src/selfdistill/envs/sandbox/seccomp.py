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

from selfdistill.envs.sandbox.syscalls import CHECKED, X86_64, Architecture

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


def build_filter(architecture: Architecture, own_pid: int) -> bytes:
    """The filter of one process, as an array of `struct sock_filter`; signals may only go to `own_pid`."""
    program = [_load(_ARCH), (_JUMP_EQUAL, 1, 0, architecture.audit), _give(_KILL), _load(_NUMBER)]
    if architecture is X86_64:
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), _give(_KILL)]
    for name, number in architecture.calls.items():
        body = _check(name, own_pid) if name in CHECKED else [_give(_ALLOW)]
        program += [(_JUMP_EQUAL, 0, len(body), number), *body]
    program.append(_give(_ERRNO | errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library; a worker loads it before it forks."""
    return ctypes.CDLL(None, use_errno=True)


def install_filter(filter_bytes: bytes) -> None:
    """Bind the calling thread and all it starts. Raises OSError when the kernel refuses."""
    buffer = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(filter_bytes) // 8, ctypes.addressof(buffer))
    if libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc().prctl(
        _PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _argument(index: int, *, high: bool = False) -> Instruction:
    return _load(_ARGUMENTS + 8 * index + (4 if high else 0))


def _give(credited: int) -> Instruction:
    return (_RETURN, 0, 0, credited)


def _refuse() -> Instruction:
    return _give(_ERRNO | errno.EPERM)


def _check(name: str, own_pid: int) -> list[Instruction]:
    """What follows the match of a call in `CHECKED`; always ends in an advantage."""
    if name in ("fsync", "fdatasync", "msync"):  # done at once: no program makes the disk work
        return [_give(_ERRNO | 0)]
    if name in ("clone3", "openat2"):  # their flags are behind a pointer; callers fall back to the older call
        return [_give(_ERRNO | errno.ENOSYS)]
    if name in ("kill", "tgkill", "tkill"):
        return [_argument(0), *_one_of((own_pid,))]
    if name == "clone":  # threads, never processes
        return [_argument(0), (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD), _give(_ALLOW), _refuse()]
    if name in ("open", "openat"):  # truncating without asking to write slips past older Landlock
        flags = 1 if name == "open" else 2
        return [_argument(flags), (_AND, 0, 0, _O_TRUNC | _O_ACCMODE), *_none_of((_O_TRUNC,))]
    if name == "prlimit64":  # reading limits, not setting them
        return [
            _argument(2), (_JUMP_EQUAL, 0, 3, 0),
            _argument(2, high=True), (_JUMP_EQUAL, 0, 1, 0), _give(_ALLOW), _refuse(),
        ]  # fmt: skip
    return [_argument(1), *_one_of(_FCNTL_COMMANDS if name == "fcntl" else _IOCTL_COMMANDS)]


def _one_of(values: tuple[int, ...]) -> list[Instruction]:
    """Allow when the loaded word is one of `values`."""
    tests: list[Instruction] = [
        (_JUMP_EQUAL, len(values) - 1 - i, 0 if i < len(values) - 1 else 1, value) for i, value in enumerate(values)
    ]
    return [*tests, _give(_ALLOW), _refuse()]


def _none_of(values: tuple[int, ...]) -> list[Instruction]:
    """Allow unless the loaded word is one of `values`."""
    return [*_one_of(values)[:-2], _refuse(), _give(_ALLOW)]
