"""Damage to a pack is an error: never a wrong sample, never the death of the process."""

import shutil

import numpy as np
import pytest
from children import REFUSED, in_child
from made_packer import NumbersPacker, build

from hatcli.data.packs.container import PACK_TYPES
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError

PAGE = 4096
HEAD = 152  # bytes that LMDB reads of each of its two head pages


@pytest.fixture(scope="module", params=PACK_TYPES)
def packs(request, tmp_path_factory):
    """Two packs: of samples that fill pages of their own, and of many small ones in a tree."""
    folder = tmp_path_factory.mktemp("packs")
    build(folder / "large", NumbersPacker(12, size=2000), pack_type=request.param)
    build(folder / "small", NumbersPacker(400, size=10), pack_type=request.param)
    return folder


@pytest.fixture
def copy(packs, tmp_path):
    def make(kind):
        target = tmp_path / kind
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(packs / kind, target)
        return target

    return make


def files_of(folder):
    """Those that a pack is read from; meta.json is for people."""
    return sorted(path for path in folder.iterdir() if path.name != "meta.json")


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
    for number, file in enumerate(files_of(copy(kind))):
        whole = file.read_bytes()
        sizes = {0, 1, 8, 15, 100, HEAD - 1, HEAD, PAGE, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + HEAD}
        sizes |= {int(len(whole) * share) for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99)}
        sizes |= {len(whole) - PAGE, len(whole) - 4, len(whole) - 1}
        for size in sorted(size for size in sizes if 0 <= size < len(whole)):
            damaged = files_of(copy(kind))[number]
            damaged.write_bytes(whole[:size])
            assert outcome_of_reading(damaged.parent) == REFUSED, (damaged.name, size)


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_pack_that_lacks_a_file_is_refused(copy, kind):
    for number in range(len(files_of(copy(kind)))):
        gone = files_of(copy(kind))[number]
        gone.unlink()
        assert outcome_of_reading(gone.parent) == REFUSED, gone.name


def _flip_bits(folder, whole, places, rng, least):
    """Flip one bit after the other, each in an else whole pack; so many must be refused."""
    refused = 0
    for name, place in places:
        damaged = bytearray(whole[name])
        damaged[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(damaged)
        try:
            read_all(folder)
        except HatError:
            refused += 1
        finally:
            (folder / name).write_bytes(whole[name])
    assert refused >= least


def _flip(folder, flips, flips_a_process):
    """Flip bits anywhere, at places in proportion to the files, and where the tables are."""
    whole = {path.name: path.read_bytes() for path in files_of(folder)}
    rng = np.random.default_rng(1)
    places = [(name, place) for name, data in whole.items() for place in range(len(data))]
    anywhere = [places[number] for number in rng.integers(len(places), size=flips)]
    heads = [*range(HEAD), *range(PAGE, PAGE + HEAD), *range(2 * PAGE, 2 * PAGE + 16)]
    some = heads[:: max(1, 4000 // flips)]
    tables = [(name, place) for name in whole for place in some if place < len(whole[name])]
    for chosen, share in ((anywhere, 0.3), (tables, 0)):  # half of LMDB's head pages isn't used
        for start in range(0, len(chosen), flips_a_process):
            some = chosen[start : start + flips_a_process]
            least = int(share * len(some))
            assert in_child(_flip_bits, folder, whole, some, rng, least) == 0, some


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(copy, kind):
    _flip(copy(kind), 60, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["large", "small"])
def test_none_of_thousands_of_flipped_bits_is_served_silently(copy, kind):
    _flip(copy(kind), 4000, 100)


@pytest.mark.parametrize("kind", ["large", "small"])
def test_a_zeroed_page_is_an_error_or_held_nothing(copy, kind):
    outcomes = []
    for number, file in enumerate(files_of(copy(kind))):
        for start in range(0, file.stat().st_size, PAGE):
            damaged = files_of(copy(kind))[number]
            with damaged.open("r+b") as opened:
                opened.seek(start)
                opened.write(bytes(min(PAGE, file.stat().st_size - start)))
            outcomes.append(outcome_of_reading(damaged.parent))
    assert outcomes.count(REFUSED) > 0.5 * len(outcomes)


def test_a_tail_of_zeros_is_an_error(copy):
    for number in range(len(files_of(copy("large")))):
        damaged = files_of(copy("large"))[number]
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
        assert outcome_of_reading(damaged.parent) == REFUSED


def test_pages_exchanged_within_a_pack_are_an_error(copy):
    data = max(files_of(copy("large")), key=lambda path: path.stat().st_size)
    whole = bytearray(data.read_bytes())
    start, end = 4 * PAGE, 8 * PAGE
    whole[start:end] = whole[12 * PAGE : 16 * PAGE]
    data.write_bytes(whole)
    assert outcome_of_reading(data.parent) == REFUSED


def test_node_positions_that_lead_out_of_an_lmdb_file_are_refused(tmp_path):
    build(tmp_path / "small", NumbersPacker(400, size=10), pack_type="lmdb")
    data = tmp_path / "small" / "data.mdb"
    whole = data.read_bytes()
    for page in range(2, len(whole) // PAGE):
        damaged = bytearray(whole)
        damaged[page * PAGE + 17] = 0xFF  # high byte of the first node's position
        data.write_bytes(damaged)
        outcome_of_reading(data.parent)
