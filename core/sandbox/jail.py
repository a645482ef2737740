"""A process confines itself: Landlock, seccomp and resource limits, by the kernel's own calls.

After `confine` the process can read Python and the system's libraries, write in one folder, and
compute. It cannot reach the network, other files, other processes, or start any; nothing it does
outlives it. It needs no root and no package; it takes effect for good, for every thread to come.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same everywhere
LEAST_ABI = 3  # from which Landlock also governs truncation; before, files could be emptied

# Landlock's rights on files: <linux/landlock.h>.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_FILE_RIGHTS = (1 << 15) - 1  # up to and with truncation (ABI 3)
_IOCTL_DEVICE = 1 << 15  # ABI 5
_INSTALLED = ("site-packages", "dist-packages")  # folders in the standard library's own
_NET = 0b11  # bind and connect by TCP (ABI 4)
_SCOPES = 0b11  # abstract sockets and signals (ABI 6)
_BOX_RIGHTS = _ALL_FILE_RIGHTS & ~(_EXECUTE | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11)
# In the box: no device nodes (6, 11), sockets (9) or pipes with a name (10); nothing is executed.

# System calls by architecture: those that reach out of the process, or leave something behind.
_CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41, "shmget": 29, "shmat": 30, "shmctl": 31, "clone": 56, "fork": 57,
        "vfork": 58, "execve": 59, "kill": 62, "semget": 64, "semop": 65, "semctl": 66,
        "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "ptrace": 101, "syslog": 103,
        "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116,
        "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126,
        "personality": 135, "uselib": 134, "ustat": 136, "sysfs": 139, "setpriority": 141,
        "sched_setparam": 142, "sched_setscheduler": 144, "vhangup": 153, "modify_ldt": 154,
        "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164,
        "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
        "init_module": 175, "delete_module": 176, "quotactl": 179, "lookup_dcookie": 212,
        "tkill": 200, "sched_setaffinity": 203, "semtimedop": 220, "clock_settime": 227,
        "tgkill": 234, "mbind": 237, "set_mempolicy": 238, "mq_open": 240, "mq_unlink": 241,
        "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "ioprio_set": 251, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
        "vmsplice": 278, "perf_event_open": 298, "fanotify_init": 300, "prlimit64": 302,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
        "sched_setattr": 314, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321,
        "execveat": 322, "userfaultfd": 323, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        # Landlock does not govern what follows: modes, owners, times and attributes of files.
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94,
        "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
        "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
        "lremovexattr": 198, "fremovexattr": 199, "setpgid": 109, "setsid": 112, "prctl": 157,
    },
    "aarch64": {
        "socket": 198, "shmget": 194, "shmctl": 195, "shmat": 196, "clone": 220, "execve": 221,
        "kill": 129, "semget": 190, "semctl": 191, "semtimedop": 192, "semop": 193,
        "msgget": 186, "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "ptrace": 117,
        "syslog": 116, "setuid": 146, "setgid": 144, "setreuid": 145, "setregid": 143,
        "setgroups": 159, "setresuid": 147, "setresgid": 149, "setfsuid": 151, "setfsgid": 152,
        "capset": 91, "personality": 92, "setpriority": 140, "sched_setparam": 118,
        "sched_setscheduler": 119, "vhangup": 58, "pivot_root": 41, "adjtimex": 171,
        "chroot": 51, "acct": 89, "settimeofday": 170, "mount": 40, "umount2": 39,
        "swapon": 224, "swapoff": 225, "reboot": 142, "sethostname": 161, "setdomainname": 162,
        "init_module": 105, "delete_module": 106, "quotactl": 60, "lookup_dcookie": 18,
        "tkill": 130, "sched_setaffinity": 122, "clock_settime": 112, "tgkill": 131,
        "mbind": 235, "set_mempolicy": 237, "mq_open": 180, "mq_unlink": 181,
        "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219,
        "ioprio_set": 30, "migrate_pages": 238, "unshare": 97, "move_pages": 239,
        "vmsplice": 75, "perf_event_open": 241, "fanotify_init": 262, "prlimit64": 261,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273,
        "sched_setattr": 274, "memfd_create": 279, "kexec_file_load": 294, "bpf": 280,
        "execveat": 281, "userfaultfd": 282, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88,
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "setpgid": 154, "setsid": 157, "prctl": 167,
    },
}  # fmt: skip
# Numbers since 424 are the same everywhere: pidfd_send_signal, io_uring, the new mount calls,
# pidfd_open, clone3, pidfd_getfd, process_madvise, mount_setattr, memfd_secret and beyond.
_CLONE3 = 435
_NEW_DENIED = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442, 447)
_NEW_FROM = 448  # calls that did not exist when this was written are answered as unknown
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every namespace
_GROUPS = ("setsid", "setpgid")
_PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG
_EPERM, _EAGAIN, _EACCES, _ENOSYS = 1, 11, 13, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _machine() -> str:
    return os.uname().machine


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def landlock_abi() -> int:
    """The version of Landlock that the kernel speaks; 0 where it has none or it is switched off."""
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def filters() -> bool:
    """Whether system calls can be filtered here, whatever Landlock is."""
    return sys.platform == "linux" and _machine() in _CALLS


def problem() -> str:
    """Why a process cannot be confined here, empty where it can."""
    if sys.platform != "linux":
        return f"Landlock needs Linux, this is {sys.platform}"
    if _machine() not in _CALLS:
        return f"no table of system calls for {_machine()}"
    abi = landlock_abi()
    if abi < LEAST_ABI:
        return f"the kernel's Landlock has version {abi}, {LEAST_ABI} is needed (Linux 6.2)"
    return ""


def limit(*, memory_bytes: int, disk_bytes: int, cpu_s: int) -> None:
    """Set the resource limits of this process.

    Args:
        memory_bytes: of address space.
        disk_bytes: of one file.
        cpu_s: seconds of computing, of all threads together.
    """
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, disk_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 128),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def drop_privileges() -> None:
    """Give up every capability for good, before anything of a program is looked at.

    Raises:
        OSError: the kernel refused.
    """
    _drop_bounds()
    _drop_capabilities()


def be_seen() -> None:
    """Let a process of the same user read what this one has open, through /proc.

    Other programs cannot: Landlock lets none look at a process outside its own domain.
    """
    _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that made it ends."""
    _libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def confine(
    *,
    readable: list[str],
    box: str,
    executable: Sequence[str] = (),
    processes: bool = False,
    files: bool = True,
) -> None:
    """Confine this process, for good.

    Args:
        readable: folders and files that may be read.
        box: the folder it may write in.
        executable: those that may be executed too; with none, nothing is.
        processes: whether it may start others, as compilers do. They stay in its group.
        files: whether Landlock governs files; without, something else must.

    Raises:
        OSError: the kernel refused; nothing is to be run then.
    """
    _syscall_no_new_privileges()
    if executable:
        _drop_bounds()
    _drop_capabilities()
    if files:
        _restrict(_ruleset(readable, box, executable))
    _seccomp("tool" if executable and processes else "runtime" if executable else "program")


def confine_server(*, readable: Sequence[str], boxes: str, files: bool = True) -> None:
    """Confine a server of programs: it forks and watches them, and reads what they print.

    Its children inherit all of it, and close what it leaves open by a `ChildLock` each.

    Args:
        readable: folders and files that may be read.
        boxes: the folder that the boxes of its programs are in.
        files: see `confine`.

    Raises:
        OSError: the kernel refused.
    """
    _syscall_no_new_privileges()
    _drop_capabilities()
    if files:
        _restrict(_ruleset([*readable, "/proc"], boxes))
    _seccomp("server")


class ChildLock:
    """What a child of a confined server does to be as confined as `confine` makes a process.

    Made before the fork, every argument of its calls too: a page that a child does not touch need
    not be copied for it.

    Args:
        readable: folders and files that may be read.
        box: the folder it may write in.
        files: see `confine`.
    """

    def __init__(self, *, readable: Sequence[str], box: str, files: bool = True) -> None:
        self._ruleset = _ruleset(readable, box) if files else -1
        program = filter_program(_machine(), _STAND_IN, "child")
        self._held = ctypes.create_string_buffer(program, len(program))
        words = (ctypes.c_uint32 * (len(program) // 4)).from_buffer(self._held)
        self._words = words
        self._places = [place for place, word in enumerate(words) if word == _STAND_IN]
        self._filter = _Filter(len(program) // 8, ctypes.addressof(self._held))
        self._pointer = ctypes.byref(self._filter)
        self._numbers = ctypes.c_long(LANDLOCK_RESTRICT), ctypes.c_int(self._ruleset)
        self._none = ctypes.c_uint32(0)

    def restrict_files(self) -> None:
        """Put the rules of files into force; their descriptor may be closed then.

        Raises:
            OSError: the kernel refused.
        """
        if self._ruleset >= 0 and _libc.syscall(*self._numbers, self._none) != 0:
            raise OSError(ctypes.get_errno(), "landlock")

    def restrict_calls(self) -> None:
        """Put the filter of calls into force, for this process's number.

        Raises:
            OSError: the kernel refused.
        """
        number = os.getpid()
        for place in self._places:
            self._words[place] = number
        if _libc.prctl(22, 2, self._pointer, 0, 0) != 0:  # PR_SET_SECCOMP, filter mode
            raise OSError(ctypes.get_errno(), "seccomp")


def _syscall_no_new_privileges() -> None:
    for option, value in ((38, 1), (4, 0)):  # PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE
        if _libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _drop_capabilities() -> None:
    """Give up every capability: root without them has a user's rights on its own files."""
    header = struct.pack("<Ii", 0x20080522, 0)  # version 3, this process
    nothing = struct.pack("<6I", *[0] * 6)
    if _libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _drop_bounds() -> None:
    """Keep root from getting capabilities back by executing something."""
    for capability in range(64):
        if _libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            break  # beyond the kernel's last one; or a user's process, which has none


def _ruleset(readable: Sequence[str], box: str, executable: Sequence[str] = ()) -> int:
    """A descriptor of rules, which `_restrict` puts into force."""
    abi = landlock_abi()
    handled = _ALL_FILE_RIGHTS | (_IOCTL_DEVICE if abi >= 5 else 0)
    attributes = struct.pack("<QQQ", handled, _NET if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _syscall(
        LANDLOCK_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    rules = [rule for path in readable for rule in _read_rules(path)]
    rules += [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in executable]
    rules += [("/dev/null", _READ_FILE | _WRITE_FILE), (box, _BOX_RIGHTS)]
    for path, rights in rules:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):  # noqa: PTH112 - pathlib is not loaded here
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
        rule = struct.pack("<Qi", rights, handle)
        _syscall(
            LANDLOCK_ADD,
            ctypes.c_int(ruleset),
            ctypes.c_uint32(1),
            ctypes.c_char_p(rule),
            ctypes.c_uint32(0),
        )
        os.close(handle)
    return ruleset


def _read_rules(path: str) -> list[tuple[str, int]]:
    """Rights to read what is below a path; Python's installed packages can be listed alone."""
    both = _READ_FILE | _READ_DIR
    if not any(os.path.isdir(f"{path}/{name}") for name in _INSTALLED):  # noqa: PTH112
        return [(path, both)]
    names = [name for name in os.listdir(path) if name not in _INSTALLED]  # noqa: PTH208
    return [(path, _READ_DIR), *((f"{path}/{name}", both) for name in names)]


def _restrict(ruleset: int) -> None:
    _syscall(LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


# --- the filter of system calls, in the kernel's packet-filter language ---------------------------

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_FIRST, _SECOND = 16, 24  # the arguments' lower halves, on little-endian machines
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


# What a server of programs needs, and none of them.
_SERVERS = ("memfd_create", "chmod", "fchmod", "fchmodat")
_PIDFD_OPEN = 434
ROLES = ("program", "server", "child", "runtime", "tool")


def filter_program(machine: str, pid: int, role: str) -> bytes:
    """The filter, as an array of the kernel's `struct sock_filter`.

    Args:
        machine: whose system calls.
        pid: of the process: the only one it may send signals to, or look up the limits of.
        role: "program" computes; "server" forks and watches such; "child" is what makes a server's
            child a program, as a second filter; "runtime" executes files too, which ones being
            Landlock's to say; "tool" may also start processes, which cannot leave its group.
    """
    calls = _CALLS[machine]
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]

    def deny(number: int, error: int) -> None:
        code.extend([(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | error)])

    def only(number: int, offset: int, values: tuple[int, ...]) -> None:
        """Allowed where an argument is one of the values."""
        body: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, offset)]
        for n, value in enumerate(values):
            body.append((_EQUAL, len(values) - n, 0, value))
        body += [(_RETURN, 0, 0, _ERROR | _EPERM), (_RETURN, 0, 0, _ALLOW)]
        code.append((_EQUAL, 0, len(body), number))
        code.extend(body)

    # Threads are made, processes are not; clone3 hides its flags, and libraries go on without it.
    # Where processes are made, they get no namespaces of their own.
    forks = role in ("server", "tool")
    wanted = (_ANY_BIT, 0, 1, _CLONE_NEW) if forks else (_ANY_BIT, 1, 0, _CLONE_THREAD)
    code += [
        (_EQUAL, 0, 4, calls["clone"]),
        (_LOAD, 0, 0, _FIRST),
        wanted,
        (_RETURN, 0, 0, _ERROR | _EAGAIN),
        (_RETURN, 0, 0, _ALLOW),
    ]
    deny(_CLONE3, _ENOSYS)
    special = {"clone", "fork", "vfork", "socket", "kill", "tgkill", "prlimit64", "prctl", *_GROUPS}
    for name in ("fork", "vfork"):
        if name in calls and not forks:
            deny(calls[name], _EAGAIN)
    if role == "tool":
        for name in _GROUPS:
            deny(calls[name], _EPERM)
    if role == "server":
        special |= {*_SERVERS}
    else:
        for name in ("kill", "tgkill"):
            only(calls[name], _FIRST, (pid,))
        only(calls["prlimit64"], _FIRST, (0, pid))
    if role in ("runtime", "tool"):
        special |= {"execve", "sched_setscheduler"}
        # To the ordinary policy alone, which mono asks for; refused, it says so on standard output.
        only(calls["sched_setscheduler"], _SECOND, (0,))
    if role != "server":  # what ends it with its parent stays
        code.extend(
            [
                (_EQUAL, 0, 4, calls["prctl"]),
                (_LOAD, 0, 0, _FIRST),
                (_EQUAL, 0, 1, _PARENT_DEATH),
                (_RETURN, 0, 0, _ERROR | _EPERM),
                (_RETURN, 0, 0, _ALLOW),
            ]
        )
    if role == "child":
        for name in _SERVERS:
            if name in calls:
                deny(calls[name], _EPERM)
        deny(_PIDFD_OPEN, _EPERM)
        code.append((_RETURN, 0, 0, _ALLOW))
        return b"".join(struct.pack("<HBBI", *line) for line in code)
    deny(calls["socket"], _EACCES)
    for name, number in calls.items():
        if name not in special:
            deny(number, _EPERM)
    for number in _NEW_DENIED:
        if role != "server" or number != _PIDFD_OPEN:
            deny(number, _EPERM)
    code += [(_AT_LEAST, 0, 1, _NEW_FROM), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in code)


class _Filter(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_STAND_IN = 0x7FFFFF7F  # beyond any process's number
_made: dict[str, bytes] = {}


def prepare() -> None:
    """Make the filters before processes are forked, so that each has but to fill in its number."""
    if filters():
        for role in ROLES:
            _made[role] = filter_program(_machine(), _STAND_IN, role)


def _seccomp(role: str) -> None:
    if role not in _made:
        prepare()
    number, stand_in = struct.pack("<I", os.getpid()), struct.pack("<I", _STAND_IN)
    program = _made[role].replace(stand_in, number)
    held = _Filter(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p))
    if _libc.prctl(22, 2, ctypes.byref(held), 0, 0) != 0:  # PR_SET_SECCOMP, filter mode
        raise OSError(ctypes.get_errno(), "seccomp")
