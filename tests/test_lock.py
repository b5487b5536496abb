"""One process at a time writes to a run's folder."""

import errno
import fcntl
import json
import os
import time

import pytest
from etils import epath

from ssljax.run import lock

OTHER = {"host": "far", "machine": "m", "pid": 7, "born": "b", "since": 1e9}


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def no_locks(monkeypatch):
    """A disk without locks, on which nothing waits."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(lock, "READ_BACK_SECONDS", 0.0)


def leased(folder, silent: float = 0.0, **holder) -> None:
    """Write a lease of another process that gave a sign of life some seconds ago."""
    text = json.dumps({**OTHER, **holder, "renewed": time.time() - silent})
    (folder / "lock").write_text(text)


def test_a_second_process_is_refused_until_the_first_lets_go(folder):
    with lock.hold(folder):
        with pytest.raises(ValueError, match=f"is in use: process {os.getpid()} on .* trains in it"):
            lock.hold(folder)
        assert (folder / "lock").exists()
    assert not (folder / "lock").exists()
    lock.hold(folder).release()


def test_a_crash_lets_go(folder):
    crashed = lock.hold(folder)
    os.close(crashed._descriptor)  # as the operating system does it; the file stays
    assert (folder / "lock").exists()
    with lock.hold(folder) as mine:
        assert json.loads((folder / "lock").read_text())["since"] == mine._me["since"]


def test_a_run_with_stages_locks_its_own_folder_and_that_of_each_stage(folder):
    stage = folder / "pretrain"
    stage.mkdir()
    with lock.hold(folder), lock.hold(stage):
        for place in (folder, stage):
            with pytest.raises(ValueError, match="is in use"):
                lock.hold(place)


def test_a_folder_that_cannot_be_written_to_is_no_traceback(folder, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ValueError, match=r"--workdir=.* cannot be written to \(Permission denied\)"):
        lock.hold(folder)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_lease_is_taken_and_given_back(folder):
    with lock.hold(folder), pytest.raises(ValueError, match="is in use"):
        lock.hold(folder)
    assert not (folder / "lock").exists()


@pytest.mark.usefixtures("no_locks")
def test_a_fresh_lease_of_another_machine_is_respected(folder):
    leased(folder, silent=40)
    with pytest.raises(
        ValueError, match=r"process 7 on far .* sign of life 40 s ago.*again in 5[56]\d s, or delete"
    ):
        lock.hold(folder)
    assert json.loads((folder / "lock").read_text())["pid"] == 7


@pytest.mark.usefixtures("no_locks")
def test_a_lapsed_lease_is_taken_over(folder):
    leased(folder, silent=lock.STALE_SECONDS + 1)
    with lock.hold(folder) as mine:
        assert "from process 7 on far" in mine.note and "silent for 601 s" in mine.note


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["this number", "a number of no process"])
def test_a_machine_that_comes_back_takes_its_own_lease_over_at_once(folder, pid):
    here = lock.identity()
    leased(folder, host=here["host"], machine=here["machine"], pid=pid, born="before the machine went down")
    with lock.hold(folder) as mine:
        assert "which is gone" in mine.note


@pytest.mark.usefixtures("no_locks")
def test_a_living_process_of_this_machine_keeps_its_lease(folder):
    here = lock.identity()
    parent = os.getppid()
    leased(folder, host=here["host"], machine=here["machine"], pid=parent, born=lock.born(parent))
    with pytest.raises(ValueError, match=f"is in use: process {parent} on"):
        lock.hold(folder)


@pytest.mark.usefixtures("no_locks")
def test_of_two_processes_at_once_one_gets_the_lease(folder, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda _: leased(folder))
    with pytest.raises(ValueError, match="process 7 on far .* came first"):
        lock.hold(folder)
    assert (folder / "lock").exists()


@pytest.mark.usefixtures("no_locks")
def test_a_lease_is_renewed_once_a_minute(folder):
    mine = lock.hold(folder)
    before = (folder / "lock").read_text()
    mine.renew()
    assert (folder / "lock").read_text() == before
    mine._renewed -= lock.RENEW_SECONDS + 1
    mine.renew()
    assert json.loads((folder / "lock").read_text())["renewed"] > json.loads(before)["renewed"]


@pytest.mark.usefixtures("no_locks")
def test_whoever_lost_the_lease_stops_and_leaves_the_other_alone(folder):
    mine = lock.hold(folder)
    leased(folder)
    mine._renewed -= 700
    with pytest.raises(ValueError, match="process 7 on far .* has taken .* over.*no sign of life for 700 s"):
        mine.renew()
    mine.release()
    assert json.loads((folder / "lock").read_text())["pid"] == 7


def test_a_lock_needs_no_renewal(folder):
    with lock.hold(folder) as mine:
        mine._renewed -= 10 * lock.STALE_SECONDS
        before = (folder / "lock").read_text()
        mine.renew()
        assert (folder / "lock").read_text() == before
