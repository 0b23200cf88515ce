"""What ``hat pack`` does with packs that are there: verify, info, convert, join."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hatcli.cli._options import AsJson
from hatcli.errors import CheckFailed

if TYPE_CHECKING:
    from hatcli.recipes.packing.info import PackInfo
    from hatcli.recipes.packing.verify import Verdict

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a pack that is there.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to a group."""
    for command in (verify, info, convert, join):
        app.command(command.__name__)(command)


def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders of packs.")],
    fast: Annotated[
        bool, typer.Option("--fast", help="Structure and metadata only; read no sample.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode each image as well, which takes long.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Whether packs are whole: every checksum, the digest, all labels. Exit code 3 if not.

    Each is read in a process apart, since a damaged file may end the process that reads it. Do it
    before the first use of a pack that comes from elsewhere.

    Example: hat pack verify data/cityscapes/train_lmdb
    """
    from hatcli.cli import _screen
    from hatcli.recipes.packing.verify import verify as verify_packs

    verdicts = _screen.follow(verify_packs(paths, fast=fast, decode_images=decode))
    if as_json:
        _screen.print_json([_verdict_document(verdict) for verdict in verdicts])
    else:
        _show_verdicts(verdicts)
    damaged = [verdict for verdict in verdicts if not verdict.is_whole]
    if damaged:
        first = f"{damaged[0].path}: damaged pack"
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise CheckFailed(first + more, "copy it again, or pack the source again")


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A pack, complete or not, or a folder of shards.")
    ],
    as_json: AsJson = False,
) -> None:
    """What a pack holds, what it was made of and how; an unfinished one tells how far it is.

    Example: hat pack info data/cityscapes/train_lmdb
    """
    from hatcli.cli import _screen
    from hatcli.recipes.packing.info import read_info

    found = read_info(path)
    if as_json:
        _screen.print_json(_info_document(found))
    elif found.kind == "shards":
        rows = [
            (shard.path.name, shard.meta["length"], _how_far(shard), shard.size_bytes)
            for shard in found.shards
        ]
        _screen.print_table(str(found.path), ("shard", "samples", "state", "bytes"), rows)
    else:
        _screen.say(f"{found.path}")
        for name, value in _info_rows(found):
            _screen.say(f"{name:<14} {value}")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A pack of hat, or an LMDB pack of msgpack or msgpack-numpy."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Gets the folder SPLIT_lmdb or so.")
    ],
    pack_type: Annotated[
        str, typer.Option("--pack-type", metavar="lmdb|mxrecord", help="Kind of container.")
    ] = "lmdb",
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="SPLIT", help="Of a foreign pack; train unless given."),
    ] = None,
    image_key: Annotated[
        str | None,
        typer.Option("--image-key", metavar="NAME", help="Foreign field that holds the image."),
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option("--label-key", metavar="NAME", help="Foreign field that holds the label."),
    ] = None,
    name_key: Annotated[
        str | None,
        typer.Option("--name-key", metavar="NAME", help="Foreign field that holds the name."),
    ] = None,
    channels: Annotated[
        str,
        typer.Option("--channels", metavar="rgb|bgr", help="Order of channels in foreign arrays."),
    ] = "rgb",
    num_classes: Annotated[
        int | None,
        typer.Option("--num-classes", metavar="N", help="Of a foreign pack; else counted."),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", "-j", metavar="N", help="Processes.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A pack into another container, or a foreign LMDB pack into one that can be trusted.

    Foreign packs hold msgpack maps or lists with numbers, texts, bytes and
    arrays of numbers. Pickles, and arrays that hold pickles, are refused: they
    may run code.

    Example: hat pack convert train_lmdb --out elsewhere --pack-type mxrecord
    """
    from hatcli.cli import _pack_result, _screen
    from hatcli.data.packers._foreign_samples import Fields
    from hatcli.recipes.packing.convert import convert as convert_pack

    result = _screen.follow(
        convert_pack(
            source,
            out,
            pack_type=pack_type,
            split=split,
            fields=Fields(image_key, label_key, name_key, channels, num_classes),
            num_workers=num_workers,
            overwrite=overwrite,
        )
    )
    _pack_result.show(result, as_json=as_json)
    _screen.next_command(["hat", "pack", "verify", result.path])


def join(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="SPLIT_lmdb.shards, filled by --shard.")
    ],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """All shards of a folder as one pack beside it; each is verified, nothing is copied.

    Example: hat pack join data/imagenet/train_lmdb.shards
    """
    from hatcli.cli import _pack_result, _screen
    from hatcli.recipes.packing.join import join as join_shards

    result = _screen.follow(join_shards(folder, overwrite=overwrite))
    _pack_result.show(result, as_json=as_json)
    _screen.next_command(["hat", "pack", "info", result.path])


def _show_verdicts(verdicts: "list[Verdict]") -> None:
    from hatcli.cli import _screen

    rows = [
        (
            verdict.path,
            verdict.kind or "-",
            verdict.length,
            verdict.checked or "-",
            f"{verdict.seconds:.1f}",
            "whole" if verdict.is_whole else f"damaged ({verdict.damaged})",
        )
        for verdict in verdicts
    ]
    columns = ("pack", "type", "samples", "read", "seconds", "")
    _screen.print_table("", columns, rows)
    for verdict in verdicts:
        for finding in verdict.findings:
            _screen.say(finding)
        if verdict.damaged > len(verdict.findings):
            _screen.say(f"{verdict.path}: {verdict.damaged - len(verdict.findings)} more")


def _verdict_document(verdict: "Verdict") -> dict[str, Any]:
    return {
        "path": str(verdict.path),
        "type": verdict.kind,
        "whole": verdict.is_whole,
        "samples": verdict.length,
        "read": verdict.checked,
        "bytes": verdict.size_bytes,
        "damaged": verdict.damaged,
        "findings": verdict.findings,
        "seconds": round(verdict.seconds, 3),
    }


def _how_far(found: "PackInfo") -> str:
    return "complete" if found.is_complete else f"unfinished ({found.meta['next']})"


def _info_rows(found: "PackInfo") -> list[tuple[str, str]]:
    from hatcli.disk import size_text

    meta = found.meta
    state = "complete" if found.is_complete else f"unfinished, {meta['next']} of {meta['length']}"
    rows = [
        ("state", state),
        ("type", found.kind),
        ("dataset", f"{meta.get('dataset')} {meta.get('split')}"),
        ("samples", f"{meta['length']}"),
        ("bytes", f"{found.size_bytes} ({size_text(found.size_bytes)})"),
    ]
    for name in ("task", "num_classes", "image_format", "content_sha256"):
        if name in meta:
            rows.append((name.replace("_", " "), f"{meta[name]}"))
    for name in ("sizes", "counts", "options", "source", "shard", "quarantine", "writer"):
        if meta.get(name):
            rows.append((name, _entries(meta[name])))
    if "shards" in meta:
        rows.append(("shards", ", ".join(shard["path"] for shard in meta["shards"])))
    return [*rows, *[(name.replace("_", " "), value) for name, value in found.written.items()]]


def _entries(value: dict[str, Any]) -> str:
    """A map in one line, the long parts left out."""
    shown = []
    for name, entry in value.items():
        text = _entries(entry) if isinstance(entry, dict) else f"{entry}"
        shown.append(f"{name} {text}" if len(text) <= 60 else f"{name} ...")
    return ", ".join(shown)


def _info_document(found: "PackInfo") -> dict[str, Any]:
    return {
        "path": str(found.path),
        "type": found.kind,
        "complete": found.is_complete,
        "bytes": found.size_bytes,
        "meta": found.meta,
        **found.written,
        **({"shards": [_info_document(shard) for shard in found.shards]} if found.shards else {}),
    }
