"""Damage to a pack is an error: never a wrong sample, never the death of the process."""

import shutil

import numpy as np
import pytest
from children import REFUSED, in_child
from made_packer import NumbersPacker, build

from hatcli.data.packs.reader import open_pack

PAGE = 4096


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Two packs: of samples that fill pages of their own, and of many small ones in a tree."""
    folder = tmp_path_factory.mktemp("packs")
    build(folder / "large", NumbersPacker(12, size=2000))
    build(folder / "small", NumbersPacker(400, size=10))
    return folder


@pytest.fixture
def copy(packs, tmp_path):
    def make(kind):
        target = tmp_path / kind
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(packs / kind, target)
        return target

    return make


def read_all(path):
    """Compare each sample with what was packed; a wrong one is an AssertionError."""
    pack = open_pack(path)
    for index in range(len(pack)):
        sample = pack[index]
        assert sample["name"] == f"number {index}"
        assert (sample["values"] == index).all()


def outcome_of_reading(path):
    code = in_child(read_all, path)
    assert code in (0, REFUSED), f"reading ended with {code}"
    return code


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_pack_cut_anywhere_is_refused(copy, kind):
    whole = (copy(kind) / "data.mdb").read_bytes()
    sizes = {0, 1, 15, 16, 100, 151, 152, PAGE, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 152}
    sizes |= {int(len(whole) * share) for share in (0.1, 0.3, 0.5, 0.9, 0.99)}
    sizes |= {len(whole) - PAGE, len(whole) - 1}
    for size in sorted(sizes):
        path = copy(kind)
        (path / "data.mdb").write_bytes(whole[:size])
        assert outcome_of_reading(path) == REFUSED, size


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(copy, kind):
    whole = (copy(kind) / "data.mdb").read_bytes()
    rng = np.random.default_rng(1)
    places = rng.integers(len(whole), size=50).tolist()
    places += rng.integers(2 * PAGE, 2 * PAGE + 16, size=10).tolist()  # a page header
    places += [*range(152), *range(PAGE, PAGE + 152)][::8]  # both heads
    outcomes = []
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path = copy(kind)
        (path / "data.mdb").write_bytes(damaged)
        outcomes.append(outcome_of_reading(path))
    assert outcomes.count(REFUSED) > 0.3 * len(outcomes)


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_zeroed_page_is_an_error_or_held_nothing(copy, kind):
    whole = (copy(kind) / "data.mdb").read_bytes()
    outcomes = []
    for page in range(len(whole) // PAGE):
        path = copy(kind)
        with (path / "data.mdb").open("r+b") as file:
            file.seek(page * PAGE)
            file.write(bytes(PAGE))
        outcomes.append(outcome_of_reading(path))
    assert outcomes.count(REFUSED) > 0.5 * len(outcomes)


def test_a_tail_of_zeros_is_an_error(copy):
    path = copy("large")
    data = path / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    assert outcome_of_reading(path) == REFUSED


def test_pages_exchanged_between_two_packs_are_an_error(copy, packs):
    path = copy("large")
    whole = bytearray((path / "data.mdb").read_bytes())
    start, end = 4 * PAGE, 8 * PAGE
    whole[start:end] = whole[12 * PAGE : 16 * PAGE]
    (path / "data.mdb").write_bytes(whole)
    assert outcome_of_reading(path) == REFUSED


def test_node_positions_that_lead_out_of_the_file_are_refused(copy):
    whole = (copy("small") / "data.mdb").read_bytes()
    for page in range(2, len(whole) // PAGE):
        damaged = bytearray(whole)
        damaged[page * PAGE + 17] = 0xFF  # high byte of the first node's position
        path = copy("small")
        (path / "data.mdb").write_bytes(damaged)
        outcome_of_reading(path)
