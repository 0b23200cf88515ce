"""No bytes bring a parser to anything but a value or an error of ours."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, try_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUNS = 200_000
SECONDS = 60


@st.composite
def mutations(draw):
    """Changes to some bytes: (kind, place as a share, what)."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "repeat"])
    place = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(kinds, place, st.binary(min_size=1, max_size=9)), max_size=4))


def mutate(data, changes):
    data = bytearray(data)
    for kind, share, what in changes:
        place = int(share * len(data))
        if not data:
            return bytes(what)
        if kind == "flip":
            data[place] ^= 1 << what[0] % 8
        elif kind == "set":
            data[place : place + len(what)] = what
        elif kind == "cut":
            del data[place : place + what[0]]
        elif kind == "insert":
            data[place:place] = what
        else:
            data[place:place] = data[place : place + what[0]]
    return bytes(data)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"pickle"}))
def test_good_bytes_are_taken(name):
    target, seed = TARGETS[name]
    assert try_one(target, seed())


@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes_give_a_value_or_an_error_of_ours(name):
    target, seed = TARGETS[name]
    good = seed()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutations())
    def check(changes):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try_one(target, mutate(good, changes))

    check()


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"lmdb_head"}))
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_value_or_an_error_of_ours(name, data):
    try_one(TARGETS[name][0], data)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_coverage_guided_fuzzer_finds_nothing_else(name, tmp_path):
    pytest.importorskip("atheris")
    script = Path(__file__).parent / "run_fuzzer.py"
    limits = [f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-timeout=20", "-rss_limit_mb=3000"]
    done = subprocess.run(
        [sys.executable, str(script), name, *limits],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS * 3,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr  # so many runs were made
