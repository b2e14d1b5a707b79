"""Runs a command on a kernel that answers every io_uring call with an error.

usage: deny_io_uring.py EPERM|ENOSYS|ENOMEM COMMAND [ARG ...]

Installs a seccomp filter (see seccomp(2)) with prctl(2), which needs no privilege and no package. The three calls have
the same numbers on every architecture; those of x86's 32-bit and x32 modes are not looked at, since nothing tested
here uses them.
"""

import ctypes
import errno
import os
import struct
import sys

IO_URING_CALLS = (425, 426, 427)  # io_uring_setup, io_uring_enter, io_uring_register

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000

BPF_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_RETURN = 0x06  # BPF_RET | BPF_K


def instruction(code, constant, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, constant)


def program(answer):
    """Loads the call's number and compares it with each of ours; a match jumps to the last instruction."""
    lines = [instruction(BPF_LOAD_WORD, 0)]
    for index, call in enumerate(IO_URING_CALLS):
        lines.append(instruction(BPF_JUMP_EQUAL, call, if_true=len(IO_URING_CALLS) - index))
    lines.append(instruction(BPF_RETURN, SECCOMP_RET_ALLOW))
    lines.append(instruction(BPF_RETURN, SECCOMP_RET_ERRNO | answer))
    return lines


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install(lines):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4
    rules = Filter(len(lines), b"".join(lines))
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, None, None, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(rules), None, None),
    ):
        if libc.prctl(*arguments) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


def main():
    if len(sys.argv) < 3 or not hasattr(errno, sys.argv[1]):
        sys.exit(__doc__)
    install(program(getattr(errno, sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])


main()
