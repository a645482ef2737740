"""A process that forks the processes of solutions, and has never seen a program.

A server reads solutions, tests and references, and its memory keeps traces of them. Whatever is
forked from it could find these, by frames or by reading its own memory. So a solution that is
judged apart from its tests comes from here: this process is forked before the first job, and all
that it ever receives are descriptors. Its child reads the solution itself.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import jail

_NUMBER = struct.Struct("<q")


class Forker:
    """The process, and the requests of its server.

    Args:
        places: the numbers that a child has its descriptors under.
        start: turns a child into a program, with the number of this process.
    """

    def __init__(self, places: Sequence[int], start: Callable[[int], NoReturn]) -> None:
        ours, theirs = _socket.socketpair()
        server = os.getpid()
        if os.fork() == 0:
            ours.close()
            _serve(theirs, places, start, server)
        theirs.close()
        self._socket = ours

    def fork(self, descriptors: Sequence[int]) -> int:
        """The number of a new process, which has these descriptors in their places.

        Raises:
            OSError: the forker has gone.
        """
        held = struct.pack(f"{len(descriptors)}i", *descriptors)
        self._socket.sendmsg([b"f"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, held)])
        return self._number()

    def wait(self, _process: int) -> int:
        """The wait status of the process that was forked last, which has ended.

        Raises:
            OSError: the forker has gone.
        """
        self._socket.send(b"w")
        return self._number()

    def _number(self) -> int:
        data = self._socket.recv(_NUMBER.size)
        if len(data) != _NUMBER.size:
            raise OSError("the process that forks solutions has ended")
        return int(_NUMBER.unpack(data)[0])


def _serve(
    socket: _socket.socket, places: Sequence[int], start: Callable[[int], NoReturn], server: int
) -> NoReturn:
    try:
        jail.die_with_parent()
        if os.getppid() != server:
            os._exit(0)
        own = os.getpid()
        while True:
            data, ancillary, _, _ = socket.recvmsg(1, _socket.CMSG_SPACE(4 * len(places)))
            if not data:
                os._exit(0)
            [(_, _, held)] = ancillary
            descriptors = struct.unpack(f"{len(held) // 4}i", held)
            # Ahead of the fork: the child may be limited to lower numbers at once.
            for descriptor, place in zip(descriptors, places, strict=True):
                os.dup2(descriptor, place, inheritable=place < 3)
                os.close(descriptor)
            child = os.fork()
            if child == 0:
                socket.close()
                start(own)
            for place in places:
                if place >= 3:
                    os.close(place)
            socket.send(_NUMBER.pack(child))
            socket.recv(1)  # its number is its own until the server has done with it
            socket.send(_NUMBER.pack(os.waitpid(child, 0)[1]))
    finally:
        os._exit(71)
