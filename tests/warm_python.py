"""A stand-in for `python` whose processes have PyTorch and the project imported when they start.

Tests that need a process of its own (to kill it, to see its exit status, to run two side by side)
otherwise spend most of their time on imports. A server imports MODULES once; the command that
`serving` makes asks it for a fork, hands over its streams, folder and environment, passes signals
on, and ends as the fork ends. Who kills the command kills the fork.

Limits: it understands `-m MODULE`, `-c PROGRAM` and a file, and passes over `-u`; variables that
Python or a library reads as it starts (PYTHONPATH, LC_ALL, OMP_NUM_THREADS) have no effect;
resource limits and terminals of the command are not those of the fork, and a signal that stops the
command does not stop the fork.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What most commands import; each fork imports the rest itself.
MODULES = (
    *("torch", "safetensors.torch", "sentencepiece", "pyarrow", "joblib", "rich.table"),
    *("codecria.cli.app", "codecria.core.training.stage", "codecria.core.training.resolve"),
    *("codecria.core.checkpoints.conversion.convert", "codecria.core.self_instruct.pipeline"),
    *("codecria.core.inference.generator", "codecria.core.evaluation.benchmarks.evaluate"),
    *("codecria.data.corpus.prepare", "torch.distributed.run", "pydantic.dataclasses"),
)
_SERVER = """
import importlib, json, os, runpy, select, signal, socket, sys

path, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers below
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # its writer has ended
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            break
        connection.close()

# The keeper of one fork: it reports how that ended, and ends it when the command is gone.
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
size, streams, _, _ = socket.recv_fds(connection, 8, 3)
job = json.loads(connection.recv(int(size), socket.MSG_WAITALL))
fork = os.fork()
if fork:
    connection.sendall(b"%d\\n" % fork)
    ended = os.pidfd_open(fork)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(fork, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with connection:
        connection.sendall(b"%d\\n" % status)
    os._exit(0)

connection.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
os.chdir(job["folder"])
os.environ.clear()
os.environ.update(job["environment"])
how, *words = [word for word in job["arguments"] if word != "-u"]
if how == "-m":
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
elif how == "-c":
    sys.argv = [how, *words[1:]]
    exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
else:
    sys.argv = [how, *words]
    sys.path.insert(0, os.path.dirname(how))
    runpy.run_path(how, run_name="__main__")
"""
_COMMAND = """\
#!{python} -IS
import json, os, signal, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    job = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    text = json.dumps(job).encode()
    socket.send_fds(server, [b"%8d" % len(text)], [0, 1, 2])
    server.sendall(text)
    answers = server.makefile("rb")
    fork = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The path of the command, which works until the block ends.

    Args:
        folder: for the command and its socket.
    """
    path, command = folder / "socket", folder / "python"
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(path), *MODULES],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    command.write_text(_COMMAND.format(python=sys.executable, path=str(path)))
    command.chmod(0o755)
    try:
        yield str(command)
    finally:
        server.stdin.close()
        server.wait(timeout=60)
