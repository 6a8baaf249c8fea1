"""The worker of a peer, run by this interpreter with the recurrence in NumPy; and what the
comparison does with a candidate that is wrong."""

import sys

import pytest

from benchmarks import baselines, measure, peers
from cmimtl_kernels import reference, testing

pytestmark = pytest.mark.quick


@pytest.fixture
def inputs():
    return testing.scan_inputs(2, 9, 6, initial_state=False)


@pytest.fixture
def peer():
    peer = peers.Peer(sys.executable, "numpy", threads=1)
    yield peer
    peer.process.stdin.close()
    peer.process.wait(timeout=600)


def test_the_same_numbers_go_and_come(peer, inputs):
    call = peer.prepare(inputs)
    expected = reference.selective_scan(**inputs, delta_softplus=True)
    assert testing.relative_l2(call(), expected) < 1e-6
    seconds = measure.once(call)
    assert 0 < seconds < 10
    again = peer.prepare(inputs | {"u": 2 * inputs["u"]})
    assert testing.relative_l2(again(), expected) > 0.1


def test_an_error_comes_back(peer, inputs):
    with pytest.raises(RuntimeError, match="peer numpy: FileNotFoundError"):
        peer.ask(load="nowhere.npz")
    with pytest.raises(RuntimeError, match="peer numpy: TypeError"):
        peer.ask(run=True)


def test_a_dead_worker_says_why():
    peer = peers.Peer(sys.executable, "nobody", threads=1)
    peer.process.kill()
    peer.process.wait(timeout=600)
    with pytest.raises(RuntimeError, match="peer nobody: must answer, has ended"):
        peer.ask(run=True)


def test_missing(monkeypatch):
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    peers.missing.cache_clear()
    assert "no interpreter" in peers.missing("json")
    monkeypatch.setenv(peers.VARIABLE, sys.executable)
    peers.missing.cache_clear()
    assert peers.missing("json") is None
    assert "cannot import no_such_module" in peers.missing("no_such_module")
    peers.missing.cache_clear()


def _candidates(wrong: float):
    def scan(u, *_):
        return 2 * u

    def other(u, *_):
        return 2 * u * (1 + wrong)

    return {
        "cpu": baselines.Baseline("cpu", scan, channels_last=True),
        "theirs": baselines.Baseline("theirs", other),
    }


@pytest.mark.parametrize("wrong", [0.0, 0.01])
def test_a_wrong_baseline_gets_no_row(inputs, wrong):
    """The baseline is in mamba's layout, so that the comparison has to transpose its result."""
    candidates = _candidates(wrong)
    first = baselines.agreement("cpu", candidates)
    calls = {name: each.prepare(inputs, backward=False) for name, each in candidates.items()}
    first("cpu", calls["cpu"])
    if wrong:
        with pytest.raises(measure.Refused, match="off by 1"):
            first("theirs", calls["theirs"])
    else:
        first("theirs", calls["theirs"])


def test_interleave_leaves_out_what_is_refused(benchmark):
    ran = []

    def first(name, call):
        if name == "b":
            raise measure.Refused("no")

    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    timings, refused = measure.interleave(benchmark, calls, rounds=3, first=first)
    assert list(timings) == ["a", "c"] and refused == {"b": "no"}
    assert ran == ["c", "a"] * 3  # the others in turn, between two rounds of ours
    with pytest.raises(AssertionError, match="b: no"):
        measure.interleave(benchmark, {"b": calls["b"]}, rounds=1, first=first)
