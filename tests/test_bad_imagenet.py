"""Every bad source of ImageNet has its message, its exit code, few lines, and leaves no pack."""

import gzip
import io
import shutil
import tarfile

import numpy as np
import pytest
from made_imagenet import (
    DEVKIT_TAR,
    META,
    SYNSETS,
    TRAIN_TAR,
    TRUTH,
    VAL_TAR,
    WNIDS,
    jpeg,
    make_folders,
    make_imagenet,
    meta_mat,
    pack_imagenet,
    tar_of,
    train_files,
    val_files,
    val_wnids,
    write_devkit,
    write_tar,
)
from refusals import a_file_as_source, empty_folder, no_folder

from hatcli.cli import run

GREY = np.full((20, 30, 3), 90)
NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
NAME = f"{WNIDS[0]}_1.JPEG"


def words(*given):
    return lambda source: list(given)


def remove(name):
    return lambda source: (source / name).unlink()


def folder_without_images(source):
    (source / "train").mkdir()


def class_folder_without_images(source):
    (source / "train" / WNIDS[0]).mkdir(parents=True)


def archive_bytes(make, name=TRAIN_TAR):
    """Another content of one of the archives, and the split that reads it."""

    def spoil(source):
        path = source / name
        path.write_bytes(make(path.read_bytes()))
        return ["--split", "val"] if name == VAL_TAR else []

    return spoil


def class_archive(make):
    """Another content of the first class's archive."""

    def spoil(source):
        files = [(f"{wnid}.tar", tar_of(images)) for wnid, images in train_files(2)]
        files[0] = files[0][0], make(files[0][1])
        write_tar(source / TRAIN_TAR, files)

    return spoil


def class_members(*members, **header):
    """Other members in the first class's archive."""
    return class_archive(lambda _: tar_of(list(members), **header))


def linked(kind, name=NAME):
    """A member that is no regular file."""
    return class_members((name, b""), type=kind, linkname="/etc/passwd")


def noted(**notes):
    """A member of which a pax header says something."""
    return class_members((NAME, b"x"), form=tarfile.PAX_FORMAT, pax_headers=notes)


def photo(data):
    """A photo of other bytes."""
    return class_members((NAME, data))


def members_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def cut_behind_members(data):
    """At the end of the last member; what follows is the end marker."""
    last = members_of(data)[-1]
    return data[: last.offset_data + -(-last.size // 512) * 512]


def cut_in_a_header(data):
    return data[: members_of(data)[-1].offset + 300]


def flip(place):
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def second_header(data):
    """A damaged header behind the first member."""
    return flip(members_of(data)[1].offset + 3)(data)


def same_class_twice(source):
    files = [(f"{wnid}.tar", tar_of(images)) for wnid, images in train_files(2)]
    write_tar(source / TRAIN_TAR, [*files, files[0]])


def same_photo_twice(source):
    shutil.rmtree(source)
    make_folders(source)
    for name in (NAME, NAME.replace("JPEG", "jpg")):
        (source / "train" / WNIDS[0] / name).write_bytes(jpeg(GREY))


def same_photo_in_two_classes(source):
    shutil.rmtree(source)
    make_folders(source)
    for wnid in WNIDS[:2]:
        (source / "val" / wnid / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg(GREY))
    return ["--split", "val"]


def photo_outside_the_folders(source):
    shutil.rmtree(source)
    make_folders(source)
    (source / "train" / NAME).write_bytes(jpeg(GREY))


def name_is_not_utf8(source):
    shutil.rmtree(source)
    make_folders(source)
    (source / "train" / WNIDS[0] / "\udcff.JPEG").write_bytes(jpeg(GREY))


def dead_link(source):
    shutil.rmtree(source)
    make_folders(source)
    (source / "train" / WNIDS[0] / NAME).symlink_to("nowhere")


def link_to_itself(source):
    shutil.rmtree(source)
    make_folders(source)
    (source / "train" / WNIDS[0] / NAME).symlink_to(NAME)


def class_not_in_the_kit(source):
    write_tar(source / TRAIN_TAR, [("n99999999.tar", tar_of([(NAME, jpeg(GREY))]))])


def val_class_not_in_train(source):
    shutil.rmtree(source)
    make_folders(source)
    shutil.rmtree(source / "train" / WNIDS[1])
    return ["--split", "val"]


def no_kit_for_val(source):
    (source / DEVKIT_TAR).unlink()
    return ["--split", "val"]


def truth(labels):
    """A ground truth of other labels."""

    def spoil(source):
        write_devkit(source, labels)
        return ["--split", "val"]

    return spoil


def gap_in_val(source):
    files = val_files(val_wnids(2))
    write_tar(source / VAL_TAR, [*files[:3], *files[4:], ("ILSVRC2012_val_00000009.JPEG", b"x")])
    return ["--split", "val"]


def kit(make):
    """Other bytes of the development kit."""
    return archive_bytes(make, DEVKIT_TAR)


def kit_with(files, **header):
    def spoil(source):
        (source / DEVKIT_TAR).write_bytes(gzip.compress(tar_of(files, **header)))
        return ["--split", "val"]

    return spoil


def kit_of(synsets):
    def spoil(source):
        write_devkit(source, [], synsets)

    return spoil


def packed_already(source):
    pack_imagenet(source)


BAD = {
    "source missing": (no_folder, 2, "source directory not found"),
    "source is a file": (a_file_as_source, 2, "is a file; give the directory"),
    "source empty": (empty_folder, 2, f"no train/ and no {TRAIN_TAR} under"),
    "archive missing": (remove(TRAIN_TAR), 2, f"found: {DEVKIT_TAR}, {VAL_TAR}"),
    "folder empty": (folder_without_images, 2, "no images nXXXXXXXX/*.JPEG in"),
    "class folder empty": (class_folder_without_images, 2, "no images nXXXXXXXX/*.JPEG in"),
    "split unknown": (words("--split", "test"), 2, "split 'test' unknown; choose train, val"),
    "image format unknown": (words("--image-format", "png"), 2, "image format 'png' unknown"),
    "check unknown": (words("--check", "all"), 2, "'all' is not one of"),
    "not official": (
        words("--expect", "official"),
        1,
        "expected 1281167 samples in train, found 8; 4 classes by devkit",
    ),
    "packed already": (packed_already, 1, "already packed (8 samples)"),
    "tar cut behind a member": (
        archive_bytes(cut_behind_members),
        1,
        "archive ends without end marker after 4 members (truncated?)",
    ),
    "tar with half an end": (
        archive_bytes(lambda data: cut_behind_members(data) + bytes(512)),
        1,
        "archive ends without end marker after 4 members",
    ),
    "tar cut in a header": (
        archive_bytes(cut_in_a_header),
        1,
        "archive ends without end marker after 3 members",
    ),
    "tar cut in a member": (
        archive_bytes(lambda data: data[:3000]),
        1,
        "archive is cut inside n02119789.tar",
    ),
    "tar with a bad header": (
        archive_bytes(second_header),
        1,
        "bad header at byte 10752 after n02119789.tar",
    ),
    "tar goes on": (
        archive_bytes(lambda data: data + data),
        1,
        "archive goes on after its end marker",
    ),
    "tar is HTML": (archive_bytes(lambda _: b"<html>" * 200), 1, "not a tar archive (starts with"),
    "tar is short HTML": (archive_bytes(lambda _: b"<html>"), 1, "not a tar archive (starts with"),
    "tar is empty": (archive_bytes(lambda _: b""), 1, "not a tar archive (empty)"),
    "tar is zeros": (archive_bytes(lambda _: bytes(10240)), 1, "archive has no members"),
    "tar without classes": (
        archive_bytes(lambda _: tar_of([("readme", b"x")])),
        2,
        "no images nXXXXXXXX/*.JPEG in",
    ),
    "tar twice a class": (same_class_twice, 1, "archive has two members of this name"),
    "class tar cut": (
        class_archive(cut_behind_members),
        1,
        "ends without end marker after 2 members (truncated?): ",
    ),
    "class tar is HTML": (class_archive(lambda _: b"<html>" * 200), 1, f"{TRAIN_TAR}::n02119789"),
    "class tar is zeros": (class_archive(lambda _: bytes(1024)), 1, "archive has no members"),
    "class tar bad header": (class_archive(second_header), 1, "bad header at byte"),
    "path up": (class_members((f"../{NAME}", b"x")), 1, "(path leaves the archive): '../n01"),
    "path up inside": (class_members((f"a/../../{NAME}", b"x")), 1, "path leaves the archive"),
    "path absolute": (class_members((f"/{NAME}", b"x")), 1, "(path leaves the archive): '/n01"),
    "path escapes": (
        class_members(("/\x1b[31m\n.JPEG", b"x")),
        1,
        r"(path leaves the archive): '/\x1b[31m\n.JPEG'",
    ),
    "path up in a note": (noted(path=f"../{NAME}"), 1, "(path leaves the archive): '../n01"),
    "size in a note": (noted(size="-5"), 1, "bad pax header (size '-5')"),
    "size in a note beyond the end": (noted(size="99999"), 1, "archive is cut inside n01"),
    "sparse by a note": (noted(**{"GNU.sparse.major": "1"}), 1, "(a sparse file, not a regular"),
    "endless name": (class_members(("x" * 2**20 + NAME, b"x")), 1, "its name has 1048593 bytes"),
    "symbolic link": (linked(tarfile.SYMTYPE), 1, "(a symbolic link, not a regular file): 'n01"),
    "hard link": (linked(tarfile.LNKTYPE), 1, "(a hard link, not a regular file)"),
    "character device": (linked(tarfile.CHRTYPE), 1, "(a device, not a regular file)"),
    "block device": (linked(tarfile.BLKTYPE), 1, "(a device, not a regular file)"),
    "pipe": (linked(tarfile.FIFOTYPE), 1, "(a pipe, not a regular file)"),
    "sparse file": (linked(tarfile.GNUTYPE_SPARSE), 1, "(a sparse file, not a regular file)"),
    "unknown kind": (linked(b"Q"), 1, "(of type b'Q', not a regular file)"),
    "photo twice": (class_members((NAME, jpeg(GREY)), (NAME, b"x")), 1, "duplicate sample name"),
    "photo by two names": (same_photo_twice, 1, "duplicate sample name"),
    "photo in two classes": (same_photo_in_two_classes, 1, "duplicate sample name"),
    "photo outside": (photo_outside_the_folders, 1, "an image outside the class folders"),
    "name not UTF-8": (name_is_not_utf8, 1, r"file name is not UTF-8: 'n01440764/\udcff.JPEG'"),
    "dead link": (dead_link, 1, f"{NAME}: No such file or directory"),
    "link to itself": (link_to_itself, 1, f"{NAME}: Too many levels of symbolic links"),
    "class unknown": (class_not_in_the_kit, 1, "n99999999 is no class of devkit"),
    "class not in train": (val_class_not_in_train, 1, f"{WNIDS[1]} is no class of train"),
    "kit missing": (no_kit_for_val, 2, f"the validation images need {DEVKIT_TAR}"),
    "truth too short": (truth([1] * 7), 1, "ground truth has 7 labels for 8 images"),
    "truth too long": (truth([1] * 9), 1, "ground truth has 9 labels for 8 images"),
    "truth unknown class": (truth([1, 9] * 4), 1, "line 2 is the id of no class ('9')"),
    "truth inner class": (truth([5] * 8), 1, "line 1 is the id of no class ('5')"),
    "truth no number": (truth(["x"] * 8), 1, "line 1 is the id of no class ('x')"),
    "truth empty": (truth([]), 1, "line 1 is the id of no class ('')"),
    "val number missing": (gap_in_val, 1, "no image ILSVRC2012_val_00000004"),
    "kit is HTML": (kit(lambda _: b"<html>login"), 1, "not a whole gzip archive (Not a gzipped"),
    "kit empty": (kit(lambda _: b""), 1, "not a tar archive (empty)"),
    "kit cut": (kit(lambda data: data[:-20]), 1, "not a whole gzip archive (Compressed file"),
    "kit damaged": (kit(flip(-6)), 1, "not a whole gzip archive (CRC check failed"),
    "kit deflate damaged": (kit(flip(100)), 1, "not a whole gzip archive"),
    "kit bomb": (kit(lambda _: gzip.compress(bytes(2**26 + 1), 1)), 1, "refused, unpacks to more"),
    "kit without meta": (kit_with([(TRUTH, b"1\n")]), 1, "no data/meta.mat in"),
    "kit without truth": (
        kit_with([(META, meta_mat())]),
        1,
        "no data/ILSVRC2012_validation_ground",
    ),
    "kit meta twice": (kit_with([(META, b"x"), (META, b"x")]), 1, "two members of this name"),
    "kit meta is a link": (
        kit_with([(META, b"")], type=tarfile.SYMTYPE),
        1,
        "(a symbolic link, not a regular file)",
    ),
    "kit meta damaged": (kit_with([(META, meta_mat()[:300])]), 1, "MAT-file is cut"),
    "kit no classes": (kit_of([(1, "n00000001", "x", [2])]), 1, "0 classes"),
    "kit wnid": (kit_of([(1, "x01440764", "x", [])]), 1, "'x01440764' is no WordNet id"),
    "kit same wnid": (kit_of([SYNSETS[0], (9, *SYNSETS[0][1:])]), 1, "stands for 2 classes"),
    "kit same id": (kit_of([SYNSETS[0], (1, *SYNSETS[1][1:])]), 1, "1 stands for 2 classes"),
    "kit id": (kit_of([(0.5, *SYNSETS[0][1:])]), 1, "0.5 is no ILSVRC2012_ID"),
    "kit id infinite": (kit_of([(1e300, *SYNSETS[0][1:])]), 1, "1e+300 is no ILSVRC2012_ID"),
    "image HTML": (photo(b"<html>sorry"), 1, "not an image (starts with '<html>"),
    "image empty": (photo(b""), 1, "empty file"),
    "image cut": (photo(jpeg(NOISE)[:-60]), 1, "image is truncated"),
    "image begins only": (photo(jpeg(NOISE)[:60]), 1, "damaged image ("),
    "image PNG head only": (photo(b"\x89PNG\r\n\x1a\n"), 1, "image is truncated (no end mark)"),
    "image PNG checksum": (
        photo(flip(-20)(jpeg(GREY, kind="PNG"))),
        1,
        "damaged PNG (IDAT checksum)",
    ),
    "image above limit": (words("--max-pixels", "500"), 1, "exceeds --max-pixels 0.0005 Mpx"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_is_explained_and_leaves_no_pack(name, tmp_path, capsys):
    spoil, code, message = BAD[name]
    source = make_imagenet(tmp_path / "imagenet", train=2, val=2)
    more = spoil(source) or []
    existed = (source / "train_lmdb").exists()
    split = [] if "--split" in more else ["--split", "train"]
    assert run(["pack", "imagenet", *split, "--src", str(source), "-j", "0", *more]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert err.isprintable() or set(err) - {"\n"} <= set(filter(str.isprintable, err))
    lines = err.splitlines()
    assert sum(not line.startswith("warning: ") for line in lines) <= 3
    assert (source / "train_lmdb").exists() == existed
    assert not (source / "val_lmdb").exists()


def test_a_missing_source_tells_where_it_comes_from(tmp_path, capsys):
    assert run(["pack", "imagenet", "--split", "train", "--src", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    for text in (TRAIN_TAR, VAL_TAR, DEVKIT_TAR, "https://image-net.org/download-images"):
        assert text in err
    assert len(err.splitlines()) == 3
