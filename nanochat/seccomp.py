"""A filter of system calls for the sandbox: what no program of a benchmark needs and what namespaces do not hold back.

Keys of the kernel's keyrings are inherited and outlive a process; AF_VSOCK reaches the host of a virtual machine from
any network namespace; ptrace, bpf, io_uring, mounts and the like are doors that are better shut. They fail with EPERM.
Sockets are only of three families (Unix, IPv4, IPv6), which the sandbox's own network namespace leaves alone with
themselves. A second wall: the first one are bubblewrap's namespaces and the dropped capabilities.

The filter is a classic BPF program as in Documentation/userspace-api/seccomp_filter.rst. There is nothing to run here.
"""

from __future__ import annotations

import platform
import struct

# From the kernel's syscall tables; what is new since 5.1 has one number everywhere.
_NUMBERS = {  # name: (x86_64, aarch64)
    "ptrace": (101, 117), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "reboot": (169, 142), "acct": (163, 89), "quotactl": (179, 60),
    "fanotify_init": (300, 262), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442), "memfd_secret": (447, 447), "syslog": (103, 116),
}
_SOCKET = (41, 198)
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD+W+ABS, BPF_JMP+JEQ+K, BPF_JMP+JGE+K, BPF_RET+K
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO with EPERM, _KILL_PROCESS
_NR, _ARCH, _ARG0 = 0, 4, 16  # offsets in struct seccomp_data (little endian: the low half of an argument first)


def system_call_filter() -> bytes | None:
    """The filter for this machine, or None where we do not know its numbers."""
    if platform.machine() not in _MACHINES:
        return None
    column, arch = _MACHINES[platform.machine()]
    # (code, if true, if false, k); a jump goes on at the next instruction plus so many
    program: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL),
                                                (_LOAD, 0, 0, _NR)]
    if column == 0:  # x32 has calls of its own under high numbers
        program += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]
    for numbers in _NUMBERS.values():
        program += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    program += [(_EQUAL, 1, 0, _SOCKET[column]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _ARG0)]
    for family in _FAMILIES:
        program += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
