"""Several processes of one command, started as torchrun starts them."""

import os
import subprocess
import sys
from collections.abc import Sequence

from torch.distributed import TCPStore


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of its processes."""
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


class Launch:
    """Processes of one command that find each other, ended with the block.

    Args:
        commands: the arguments of each process's Python.
        python: the program; None takes what the fixture `warm_launches` set, where a test uses it.
    """

    python = sys.executable

    def __init__(self, commands: Sequence[Sequence[str]], *, python: str | None = None) -> None:
        # As torchrun's, the store outlives the processes; it takes a port that is free.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            subprocess.Popen(
                [python or self.python, *command],
                env=environment(rank, len(commands), self.store.port),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]

    def end(self, timeout_s: float = 240) -> list[tuple[int, str, str]]:
        """Status, stdout and stderr of each."""
        try:
            found = [process.communicate(timeout=timeout_s) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [
            (process.returncode, *streams)
            for process, streams in zip(self.processes, found, strict=True)
        ]
