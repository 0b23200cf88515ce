"""Shows what a packing run has published."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatcli.recipes.packing.pack import PackResult


_CHECKS = {
    "decode": "every image decoded",
    "header": "the head of every image",
    "none": "format and size of every image",
}


def show(result: "PackResult", *, as_json: bool) -> None:
    """The result on stdout, as tables or as a document."""
    from hatcli.cli import _screen

    if as_json:
        _screen.print_json(_as_document(result))
    else:
        _show(result)


def _show(result: "PackResult") -> None:
    from hatcli.cli import _screen
    from hatcli.disk import size_text

    meta = result.meta
    checks = _CHECKS.get(meta.get("options", {}).get("check"), "")
    kinds = [f"{kind} ({count})" for kind, count in meta.get("counts", {}).items()]
    rows = [
        ("images", f"{meta['length']}"),
        ("bytes", f"{result.size_bytes} ({size_text(result.size_bytes)})"),
        ("image sizes", _image_sizes(meta.get("sizes", {}))),
        ("image kinds", ", ".join(kinds)),
        *_class_rows(meta),
        ("content sha256", meta["content_sha256"][:16]),
        *([("checks", checks)] if checks else []),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    if result.left_out:
        rows.append(("left out", f"{result.left_out}"))
    if result.resumed_at:
        rows.append(("from an earlier run", f"{result.resumed_at}"))
    _screen.print_table(str(result.path), ("", ""), rows)
    if "class_pixels" in meta:
        _show_classes(meta)


def _image_sizes(sizes: Mapping[str, Any]) -> str:
    """Each size and how often it occurs; where there are too many, the range of each side."""
    return ", ".join(
        f"{size} ({n})" if isinstance(n, int) else f"{size} {_range_text(n)}"
        for size, n in sizes.items()
    )


def _class_rows(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Images or boxes a class, in two lines: there may be a thousand classes."""
    what = "boxes" if "class_boxes" in meta else "images"
    counts = sorted(count for count in meta.get(f"class_{what}", []) if count)
    if not counts:
        return []
    spread = {"min": counts[0], "median": counts[(len(counts) - 1) // 2], "max": counts[-1]}
    classes = f"{len(counts)} of {meta['num_classes']} have {what}"
    rows = [("classes", classes), (f"{what} a class", _range_text(spread))]
    if what == "boxes":
        kinds = [f"{kind} ({count})" for kind, count in meta["boxes"].items() if count]
        rows.append(("boxes", ", ".join(kinds)))
    return rows


def _range_text(spread: Mapping[str, int]) -> str:
    if spread["min"] == spread["max"]:
        return str(spread["min"])
    return f"{spread['min']} to {spread['max']} (median {spread['median']})"


def _show_classes(meta: Mapping[str, Any]) -> None:
    from hatcli.cli import _screen

    pixels = dict(zip(meta["classes"], meta["class_pixels"], strict=True))
    pixels["(ignored)"] = meta["ignored_pixels"]
    total = sum(pixels.values())
    rows = [(name, f"{count}", f"{100 * count / total:.2f}") for name, count in pixels.items()]
    _screen.print_table("", ("class", "pixels", "share %"), rows)


def _as_document(result: "PackResult") -> dict[str, Any]:
    return {
        "path": str(result.path),
        "images": result.meta["length"],
        "bytes": result.size_bytes,
        "seconds": round(result.seconds, 3),
        "resumed_at": result.resumed_at,
        "left_out": result.left_out,
        "remarks": result.remarks,
        "meta": result.meta,
    }
