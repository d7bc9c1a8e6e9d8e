"""Processes of Python that start at once: forks of one that has imported everything.

    run("allmem_mlx.generate", "--prompt", "Hello")   # python -m ...
    run("examples/ask_a_book.py", "book.txt")         # python examples/...
    run("-c", "print(1)")                             # python -c ...

Each has its own arguments, folder, environment, streams and signals, as if it had been
started anew. A test of imports or memory, or one that sets a variable that modules look
at while they are imported, needs ``fresh=True``: an ordinary process.
"""

import atexit
import ctypes
import fcntl
import gc
import io
import json
import os
import pickle
import pty
import random
import re
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

ROOT = Path(__file__).parents[1]
SECONDS = 300  # after which a process is taken to be stuck
IMPORTED = ("matplotlib.pyplot", "mlx_lm.generate", "mlx_lm.server", "torch")


def run(
    *command, stdin: str | bytes | None = None, **options
) -> subprocess.CompletedProcess:
    """Runs a program to its end, as a user would. ``stdin`` is what it reads from a
    pipe, ``options`` are those of :func:`start`."""
    if stdin is not None:
        options["stdin"], end = os.pipe()
        data = stdin.encode() if isinstance(stdin, str) else stdin
        threading.Thread(target=_write, args=(end, data), daemon=True).start()
    process = start(*command, **options)
    if stdin is not None:
        os.close(options["stdin"])
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _write(end: int, data: bytes) -> None:
    with suppress(BrokenPipeError), open(end, "wb") as file:
        file.write(data)


def alone(function: Callable, *arguments):
    """What a function of a test file returns in a process of its own."""
    result = run("-c", ALONE, stdin=pickle.dumps((function, arguments)))
    assert result.returncode == 0, result.stderr.decode()
    return pickle.loads(result.stdout)


ALONE = f"""
import pickle, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import processes
function, arguments = pickle.load(sys.stdin.buffer)
processes.forget_peak()
pickle.dump(function(*arguments), sys.stdout.buffer)
"""


def peak() -> int:
    """The largest size in bytes that this process has had in memory. It only grows:
    what a function needs is seen in a process of its own, see :func:`alone`."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What getrusage says on Linux is that of the parent, if it is more.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def forget_peak() -> None:
    """What is free already goes back to the system: the next use of it is seen."""
    if sys.platform == "linux":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def start(
    *command,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    imports: dict[str, str] | None = None,
    controlled: bool = False,
    fresh: bool = sys.platform != "linux",  # to Metal a fork is no process of its own
) -> "subprocess.Popen | Fork":
    """Starts a program.

    ``env`` is what is changed in the environment, ``imports`` what was changed before
    the modules of a fork were imported; many that are the same are no dearer than one.
    A terminal is ``controlled`` if its end of the line can hang up.
    """
    arguments = [os.fsdecode(x) if isinstance(x, bytes) else str(x) for x in command]
    changed, imports = env or {}, imports or {}
    env = {**os.environ, **imports, **changed}
    if not fresh:
        streams = stdin, stdout, stderr
        connection = server(*sorted(imports.items()))
        return Fork(connection, streams, arguments, str(cwd), env, controlled)
    module = arguments[0] != "-c" and not arguments[0].endswith(".py")
    return subprocess.Popen(
        [sys.executable, *["-m"] * module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        preexec_fn=partial(begin, controlled),
        start_new_session=True,
    )


def begin(controlled: bool) -> None:
    """Signals have their effect in this process, the leader of a session, though the
    tests may run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    if controlled:
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)


class Fork:
    """A fork; used like ``subprocess.Popen``."""

    def __init__(self, connection, streams: tuple, command: list[str], *options):
        self.files = [
            tempfile.TemporaryFile() if x == subprocess.PIPE else None for x in streams
        ]
        with open(os.devnull, "r+b") as null:
            descriptors = [
                null.fileno()
                if x == subprocess.DEVNULL
                else x
                if file is None
                else file.fileno()
                for x, file in zip(streams, self.files, strict=True)
            ]
            self.status, other = socket.socketpair()
            with other:
                request = json.dumps([command, *options]).encode()
                descriptors.append(other.fileno())
                socket.send_fds(connection, [request], descriptors)
        self.args, self.returncode = command, None
        self.pid = self._receive(SECONDS)

    def _receive(self, timeout: float | None) -> int:
        if not select.select([self.status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        data = self.status.recv(8)
        assert data, "the process that forks has ended"
        return int.from_bytes(data, "little", signed=True)

    def wait(self, timeout: float | None = SECONDS) -> int:
        if self.returncode is None:
            self.returncode = self._receive(timeout)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = SECONDS) -> tuple:
        """What it wrote to stdout and stderr, once it has ended."""
        self.wait(timeout)
        for file in filter(None, self.files):
            file.seek(0)
        return tuple(file and file.read() for file in self.files[1:])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *command, columns: int = 80, **options):
        self.main, side = pty.openpty()
        termios.tcsetwinsize(side, (24, columns))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), side)
        options = {**streams, "controlled": True, **options}
        self.process = start(*command, **options)
        os.close(side)
        self.seen, self.at = "", 0

    def read(self, seconds: float = 60) -> None:
        """Waits for more of what is printed."""
        assert select.select([self.main], [], [], max(0, seconds))[0], self.seen
        data = b""
        with suppress(OSError):  # the program has ended
            data = os.read(self.main, 4096)
        assert data, self.seen
        self.seen += data.decode(errors="replace")

    def until(self, words: str, seconds: float = 60) -> str:
        """What is printed next, up to some words."""
        deadline, begin = time.monotonic() + seconds, self.at
        while (found := self.seen.find(words, begin)) < 0:
            self.read(deadline - time.monotonic())
        self.at = found + len(words)
        return self.seen[begin : self.at]

    def end(self, code: int = 0) -> None:
        assert self.process.wait(20) == code
        os.close(self.main)


def wait_for(condition: Callable[[], bool], process, seconds: float = 60) -> None:
    """Waits for what a process does; it must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the process is stuck"
        time.sleep(0.01)


@cache
def server(*env: tuple[str, str]) -> socket.socket:
    """The connection to a process that forks, which ends with this one. It imports with
    these variables set."""
    connection, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with other:
        subprocess.Popen(
            [sys.executable, __file__, str(other.fileno())],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **dict(env)},
            pass_fds=[other.fileno()],
        )
    return connection


def serve(requests: socket.socket) -> None:
    """Forks for every request."""
    sys.path[0] = str(ROOT)
    own = [*(ROOT / "allmem_mlx").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    names = [".".join(x.relative_to(ROOT).with_suffix("").parts) for x in own]
    for name in (*sorted(names), *IMPORTED):
        if name.startswith("convert."):
            name = f"allmem_mlx.{name}"
        with suppress(Exception):  # which the program meets again
            import_module(name.removesuffix(".__init__"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 2**20, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            status = socket.socket(fileno=descriptors.pop())
            become(status, descriptors, *json.loads(request))
        for descriptor in descriptors:
            os.close(descriptor)


def become(
    status: socket.socket,
    streams: list[int],
    command: list[str],
    cwd: str,
    env: dict[str, str],
    controlled: bool,
) -> NoReturn:
    """Runs a program in another fork, of which this one says how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ready, began = os.pipe()
    child = os.fork()
    if child:
        for descriptor in (began, *streams):
            os.close(descriptor)
        os.read(ready, 1)  # until it has begun
        status.send(child.to_bytes(8, "little"))
        _, ended = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(ended)
        status.send(code.to_bytes(8, "little", signed=True))
        os._exit(0)
    status.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in set(streams):
        os.close(stream)
    os.setsid()
    begin(controlled)
    for descriptor in (ready, began):
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = map(
        reopened, (sys.stdin, sys.stdout, sys.stderr)
    )
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    try:
        execute(*command)
        code = 0
    except SystemExit as error:
        code = error.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # Python's own end would touch, and so copy, all that was imported.
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def reopened(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A stream of Python's own, now that it has another file."""
    file = open(stream.fileno(), f"{stream.mode}b", closefd=False)
    return io.TextIOWrapper(
        file,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering or file.isatty(),
        write_through=stream.write_through,
    )


def execute(name: str, *arguments: str) -> None:
    """Does what ``python -m name``, ``python name.py`` or ``python -c`` does."""
    sys.argv = [name, *arguments]
    if name == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        sys.path[0], code = "", sys.argv.pop(1)
        exec(code, main.__dict__)
    elif name.endswith(".py"):
        sys.path[0] = str(Path(name).resolve().parent)
        runpy.run_path(name, run_name="__main__")
    else:
        sys.path[0] = os.getcwd()
        if hasattr(sys.modules.get(name), "__path__"):
            name += ".__main__"
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
