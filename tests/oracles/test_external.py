"""External programs end whole: on time-out, on interruption, and when the process that started them is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discovery.files import write_atomically
from oracles.external import run

SLEEPER = "sleep 300 & echo $! > child; echo started; wait"


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def child_of(folder: Path) -> int:
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text().strip())
    return int((folder / "child").read_text())


def test_a_program_that_ends_is_reported(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; echo $SOME; exit 3"]
    outcome = run(command, folder=tmp_path, log="log.txt", max_seconds=30, environment={"SOME": "thing"})
    assert outcome.returncode == 3
    assert not outcome.timed_out
    assert (tmp_path / "log.txt").read_text().split() == ["out", "err", "thing"]


def test_a_time_out_kills_grandchildren(tmp_path: Path) -> None:
    outcome = run(["sh", "-c", SLEEPER], folder=tmp_path, log="log.txt", max_seconds=1.0)
    assert outcome.timed_out
    assert outcome.returncode == -signal.SIGKILL
    assert outcome.seconds < 20
    wait_until(lambda: not alive(child_of(tmp_path)))


def test_what_a_program_leaves_running_is_killed_too(tmp_path: Path) -> None:
    outcome = run(["sh", "-c", "sleep 300 & echo $! > child"], folder=tmp_path, log="log.txt", max_seconds=30)
    assert outcome.returncode == 0
    wait_until(lambda: not alive(child_of(tmp_path)))


def test_an_interruption_kills_grandchildren(tmp_path: Path) -> None:
    # A shell starts background jobs, and so the tests among them, with SIGINT ignored.
    code = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from oracles.external import run;"
        f"run(['sh', '-c', {SLEEPER!r}], folder=pathlib.Path(sys.argv[1]), log='log.txt', max_seconds=300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    child = child_of(tmp_path)
    assert alive(child)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    wait_until(lambda: not alive(child))


def test_a_file_is_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udcff")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
