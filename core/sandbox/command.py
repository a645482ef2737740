"""The tier of a user's command: each program in a process that the command makes.

    podman run --rm -i --network none IMAGE      what the user gives
    python3 -I -c BOOT                           what is put behind it

The command must confine the program. Programs are Python ones; the image needs Python
3.11 or newer and nothing else. Source, tests and key come on standard input, the key last, so that
it is in no argument, file or environment; where the kernel allows it, the program confines itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError

from .child import GO, KEY_BYTES
from .watch import as_answer, judged
from .wire import Answer, Job

# Reads exactly as much as it should, so that the key stays in the pipe. The parts are modules of a
# package that is nowhere on the disk.
BOOT = """
import json, os, sys, types
def take(n):
    parts = b""
    while len(parts) < n:
        part = os.read(0, n - len(parts))
        if not part: os._exit(71)
        parts += part
    return parts
def text(): return take(int(take(12)))
package = types.ModuleType("sandbox")
package.__path__ = []
sys.modules["sandbox"] = package
for name in ("jail", "plain", "bridge", "pristine", "child"):
    module = types.ModuleType("sandbox." + name)
    module.__package__ = "sandbox"
    sys.modules["sandbox." + name] = module
    setattr(package, name, module)
    exec(compile(text(), "<" + name + ">", "exec"), module.__dict__)
job = json.loads(text())
module.alone(job)
"""
PYTHON = ("python3", "-I", "-c", BOOT)
START_S = 30.0  # that a container may take before its program begins


def judge(command: Sequence[str], job: Job) -> Answer:
    """Run one Python program by the command and judge it.

    Args:
        command: it makes a confined process.
        job: the program and its limits.

    Raises:
        UserError: the command cannot be started.
    """
    bounds = job.bounds
    key = os.urandom(KEY_BYTES)
    parts = [
        Path(__file__).with_name(name).read_bytes()
        for name in ("jail.py", "plain.py", "bridge.py", "pristine.py", "child.py")
    ]
    fields: dict[str, Any] = {
        "source": job.source,
        "tests": job.tests,
        "stdin": job.stdin,
        "entry": job.entry,
        "limits": {
            "memory_bytes": bounds.memory_bytes,
            "disk_bytes": bounds.disk_bytes,
            "cpu_s": int(bounds.wall_s) + 2,
        },
    }
    parts.append(json.dumps(fields).encode())
    given = b"".join(f"{len(part):012}".encode() + part for part in parts) + GO + key
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [*command, *PYTHON],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(
            f"the sandbox's command does not start: {error}", hint="see --sandbox-command"
        ) from error
    try:
        out, err, reason = _watch(process, given, bounds.wall_s, bounds.output_bytes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
    stderr = err.decode(errors="replace")
    judgement = judged(reason, code, key in out, stderr)
    stdout = out.replace(key, b"").decode(errors="replace")
    seconds = time.monotonic() - started
    return as_answer(judgement, seconds, code, stdout, stderr, bounds.kept)


def _watch(
    process: subprocess.Popen[bytes], given: bytes, wall_s: float, most: int
) -> tuple[bytes, bytes, str]:
    """Feed a process and read it, for as long and as much as it may; output, errors, reason."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    read = {process.stdout: bytearray(), process.stderr: bytearray()}
    reason = ""
    deadline = time.monotonic() + wall_s + START_S
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        for stream in read:
            waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map() and not reason:
            left = deadline - time.monotonic()
            if left <= 0:
                reason = "time"
                break
            for found, _ in waiting.select(left):
                if found.fileobj is process.stdin:
                    try:
                        given = given[os.write(process.stdin.fileno(), given[: 1 << 16]) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        given = b""
                    if not given:
                        waiting.unregister(process.stdin)
                        process.stdin.close()
                        # It has all but the pipe's share: what it takes from now on is its own.
                        deadline = min(deadline, time.monotonic() + wall_s + 1.0)
                    continue
                stream = process.stdout if found.fileobj is process.stdout else process.stderr
                data = os.read(stream.fileno(), 1 << 16)
                read[stream] += data
                if not data:
                    waiting.unregister(stream)
                elif len(read[stream]) > most + KEY_BYTES:
                    reason = "it printed more than it may"
    if not reason:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            reason = "time"
    return bytes(read[process.stdout]), bytes(read[process.stderr]), reason
