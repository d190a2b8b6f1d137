"""System-call numbers per architecture, and what a scored program may call.

Numbers are the kernel's stable interface (`asm/unistd_64.h` on x86-64, `asm-generic/unistd.h` on aarch64). A call that
is not in `calls` is refused with EPERM. Some in it are let through for some arguments only, or answered without calling
the kernel: see `seccomp`.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """`audit` is the AUDIT_ARCH word that the kernel reports, `seccomp` and `capset` are the numbers of our own calls;
    `calls` maps the names of a program's calls to numbers."""

    audit: int
    seccomp: int
    capset: int
    calls: dict[str, int]


# fmt: off
X86_64 = Architecture(0xC000003E, 317, 126, {
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295, "pwritev": 296,
    "close": 3, "close_range": 436, "fstat": 5, "newfstatat": 262, "stat": 4, "lstat": 6, "statx": 332, "lseek": 8,
    "access": 21, "faccessat": 269, "faccessat2": 439, "getdents64": 217, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "dup": 32, "dup2": 33, "dup3": 292, "pipe": 22, "pipe2": 293, "ftruncate": 77, "fsync": 74, "fdatasync": 75,
    "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264, "renameat2": 316, "mkdir": 83, "mkdirat": 258,
    "rmdir": 84, "readlink": 89, "readlinkat": 267, "umask": 95, "mmap": 9, "munmap": 11, "mprotect": 10,
    "mremap": 25, "madvise": 28, "brk": 12, "mincore": 27, "msync": 26, "futex": 202, "set_robust_list": 273,
    "get_robust_list": 274, "rseq": 334, "exit": 60, "exit_group": 231, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131,
    "restart_syscall": 219, "getpid": 39, "gettid": 186, "getppid": 110, "getuid": 102, "geteuid": 107, "getgid": 104,
    "getegid": 108, "getresuid": 118, "getresgid": 120, "getgroups": 115, "getpgrp": 111, "getpgid": 121,
    "getsid": 124, "uname": 63, "sysinfo": 99, "getrandom": 318, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "nanosleep": 35, "gettimeofday": 96, "time": 201, "times": 100, "getrusage": 98,
    "getrlimit": 97, "sched_yield": 24, "sched_getaffinity": 204, "getcpu": 309, "poll": 7, "ppoll": 271,
    "select": 23, "pselect6": 270, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281,
    "eventfd2": 290, "setitimer": 38, "getitimer": 36, "alarm": 37, "pause": 34, "wait4": 61, "waitid": 247,
    "arch_prctl": 158, "set_tid_address": 218, "membarrier": 324, "fstatfs": 138, "flock": 73, "fadvise64": 221,
    "sendfile": 40, "copy_file_range": 326, "open": 2, "openat": 257, "fcntl": 72, "ioctl": 16, "clone": 56,
    "clone3": 435, "openat2": 437, "kill": 62, "tgkill": 234, "tkill": 200, "prlimit64": 302,
})

AARCH64 = Architecture(0xC00000B7, 277, 91, {
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69, "pwritev": 70,
    "close": 57, "close_range": 436, "fstat": 80, "newfstatat": 79, "statx": 291, "lseek": 62, "faccessat": 48,
    "faccessat2": 439, "getdents64": 61, "getcwd": 17, "chdir": 49, "fchdir": 50, "dup": 23, "dup3": 24, "pipe2": 59,
    "ftruncate": 46, "fsync": 82, "fdatasync": 83, "unlinkat": 35, "renameat": 38, "renameat2": 276, "mkdirat": 34,
    "readlinkat": 78, "umask": 166, "mmap": 222, "munmap": 215, "mprotect": 226, "mremap": 216, "madvise": 233,
    "brk": 214, "mincore": 232, "msync": 227, "futex": 98, "set_robust_list": 99, "get_robust_list": 100, "rseq": 293,
    "exit": 93, "exit_group": 94, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
    "rt_sigpending": 136, "rt_sigtimedwait": 137, "rt_sigsuspend": 133, "sigaltstack": 132, "restart_syscall": 128,
    "getpid": 172, "gettid": 178, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177,
    "getresuid": 148, "getresgid": 150, "getgroups": 158, "getpgid": 155, "getsid": 156, "uname": 160, "sysinfo": 179,
    "getrandom": 278, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "nanosleep": 101,
    "gettimeofday": 169, "times": 153, "getrusage": 165, "getrlimit": 163, "sched_yield": 124,
    "sched_getaffinity": 123, "getcpu": 168, "ppoll": 73, "pselect6": 72, "epoll_create1": 20, "epoll_ctl": 21,
    "epoll_pwait": 22, "eventfd2": 19, "setitimer": 103, "getitimer": 102, "wait4": 260, "waitid": 95,
    "set_tid_address": 96, "membarrier": 283, "fstatfs": 44, "flock": 32, "fadvise64": 223, "sendfile": 71,
    "copy_file_range": 285, "openat": 56, "fcntl": 25, "ioctl": 29, "clone": 220, "clone3": 435, "openat2": 437,
    "kill": 129, "tgkill": 131, "tkill": 130, "prlimit64": 261,
})
# fmt: on

ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
"""By the name that `platform.machine()` gives."""


def this_architecture() -> Architecture | None:
    """That of this machine; None where the kernel is not Linux on one of `ARCHITECTURES`."""
    return ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" else None
