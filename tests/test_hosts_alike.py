"""Hosts that were started with different commands, versions or data find out; two threads play the hosts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from configs import simclr
from ssljax.run import hosts, lock


class Service:
    """The part of JAX's coordination service that hosts compare through."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 5), f"nobody wrote {key}"
            return self.values[key]

    def key_value_dir_get(self, place):
        return [(key, value) for key, value in self.values.items() if key.startswith(place)]


@pytest.fixture
def as_hosts(monkeypatch):
    """Call a function as host 0 and as host 1. Returns what they return, or what they raise."""
    me = threading.local()
    service = Service()
    barrier = threading.Barrier(2, timeout=5)
    places = {0: [], 1: []}

    def meet(name):
        places[me.number].append(name)
        barrier.wait()

    class Count:
        """Each host counts for itself, as each process does."""

        def __next__(self):
            me.count = getattr(me, "count", 0) + 1
            return me.count

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: me.number)
    monkeypatch.setattr(ocp.multihost, "get_jax_distributed_client", lambda: service)
    monkeypatch.setattr(hosts, "meet", meet)
    monkeypatch.setattr(hosts, "_compared", Count())

    def call(function):
        def one(number):
            me.number = number
            try:
                return function(number)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(one, (0, 1)))
        assert places[0] == places[1], "both met at the same places"
        return found

    return call


def started(number, seed=0, workdir="runs/a"):
    config = simclr.get_config("digits").unlock()
    if number == 1:
        config.seed = seed
        hosts.started_alike(config, workdir=workdir, profile=0)
    else:
        hosts.started_alike(config, workdir="runs/a", profile=0)


def test_equal_hosts_go_on(as_hosts):
    assert as_hosts(started) == [None, None]


@pytest.mark.parametrize(
    "other, message",
    [
        (dict(seed=1), "host 1 has --config.seed=1 and host 0 has 0"),
        (dict(workdir="runs/b"), "host 1 has --workdir=runs/b and host 0 has runs/a"),
        (
            dict(workdir="runs/b", seed=3),
            "host 1 has --workdir=runs/b, --config.seed=3 and host 0 has --workdir=runs/a, --config.seed=0",
        ),
    ],
    ids=["seed", "folder", "both"],
)
def test_all_hosts_name_what_differs(as_hosts, other, message):
    first, second = as_hosts(lambda number: started(number, **other))
    assert first == second
    assert f"the hosts were not started alike: {message}. Start the same command" in str(first)


def test_other_versions_are_named(as_hosts, monkeypatch):
    monkeypatch.setattr(hosts, "versions", lambda: {"jax": f"0.1{jax.process_index()}"})
    first, second = as_hosts(started)
    assert first == second and "host 1 has jax=0.11 and host 0 has 0.10" in str(first)


def test_other_data_are_named(as_hosts):
    found = as_hosts(lambda number: hosts.same({"checksum of data (train)": "ab"[number]}))
    assert "host 1 has checksum of data (train)=b and host 0 has a" in str(found[1])


def test_many_differences_are_counted():
    text = hosts.difference(2, dict.fromkeys("abcde", 1), dict.fromkeys("abcd", 0))
    assert text == "host 2 has a=1, b=1, c=1 and host 0 has a=0, b=0, c=0 (5 differ)"


def test_all_hosts_hear_that_the_folder_is_in_use(as_hosts, tmp_path, monkeypatch):
    def refused(self):
        raise ValueError("is in use")

    monkeypatch.setattr(lock.Lock, "take", refused)
    assert as_hosts(lambda number: lock.hold(epath.Path(tmp_path))) == ["is in use", "is in use"]
