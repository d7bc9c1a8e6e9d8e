"""A fork is to a test what a new process is, and sees what memory is used."""

import os
import signal
import subprocess

import numpy as np
import pytest
from processes import Terminal, alone, peak, run, start, wait_for

PROGRAMS = {
    "arguments": ("-c", "import sys; print(sys.argv, sys.path[0])", "a b", "--c", ""),
    "input": ("-c", "import sys; print(sys.stdin.read().upper())"),
    "streams": (
        "-c",
        "import sys\n"
        "for x in (sys.stdin, sys.stdout, sys.stderr):\n"
        "    print(x.encoding, x.errors, x.isatty(), x.line_buffering)",
    ),
    "surroundings": ("-c", "import os; print(os.getcwd(), os.environ['WORD'])"),
    "an exit code": ("-c", "print('out'); raise SystemExit(3)"),
    "a message": ("-c", "raise SystemExit('a message')"),
    "a signal": ("-c", "import os; print('out', flush=True); os.kill(os.getpid(), 15)"),
    "a module": ("allmem_mlx", "--version"),
    "a command": ("allmem_mlx.search", "nowhere.archive", "word"),
    "a program": ("examples/ask_a_book.py", "nowhere.txt"),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_fork_is_like_a_new_process(program, monkeypatch):
    monkeypatch.setenv("WORD", "before")
    fork, new = (
        vars(run(*program, stdin="words", env={"WORD": "changed"}, fresh=fresh))
        for fresh in (False, True)
    )
    assert fork == new


def test_an_error_is_a_traceback():
    result = run("-c", "1 / 0")
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.endswith(b"ZeroDivisionError: division by zero\n")


def test_signals_and_waiting():
    process = start("-c", "import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    assert process.communicate()[1].endswith(b"KeyboardInterrupt\n")
    with pytest.raises(AssertionError, match="no longer"):
        wait_for(lambda: False, start("-c", "raise SystemExit('no longer')"))


@pytest.mark.parametrize("fresh", [False, True])
def test_a_terminal(fresh):
    terminal = Terminal("-c", "print(open('/dev/tty').read(3))", fresh=fresh)
    os.write(terminal.main, b"abc\n")
    terminal.until("abc\r\nabc")
    terminal.end()


def growth(size: int) -> int:
    before = peak()
    np.ones(size, np.uint8)
    return peak() - before


def test_memory_that_is_used_is_seen():
    """Whatever this process, and the one that forks, have used before."""
    np.ones(10**9, np.uint8)
    assert alone(growth, 0) < 2**22
    for size in (10**7, 10**8):
        assert 0.9 * size < alone(growth, size) < 1.1 * size + 2**22
