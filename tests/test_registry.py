import sys

import pytest

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.registry import Registry, fits

PART = '''
from made_parts import PARTS

@PARTS.register
def ring(size: int, name: str = "r", *, scale: float | None = None) -> tuple:
    """A ring.

    More.
    """
    return ("ring", size, name, scale)

@PARTS.register
class Square:
    def __init__(self, side: float, given: object = None) -> None:
        self.side, self.given = side, given
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    package = tmp_path / "made_parts"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from hatcli.registry import Registry\n"
        "PARTS = Registry('part', __name__, given=['given'])\n"
    )
    (package / "shapes.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    import made_parts

    yield made_parts.PARTS
    for name in [name for name in sys.modules if name.startswith("made_parts")]:
        del sys.modules[name]


def test_names_and_arguments_are_known_without_importing_the_part(parts):
    assert parts.names() == ["Square", "ring"]
    assert [p.name for p in parts.part("ring").parameters] == ["size", "name", "scale"]
    assert parts.part("ring").summary == "A ring."
    assert "made_parts.shapes" not in sys.modules


def test_build_imports_and_calls_the_part(parts):
    assert parts.build({"type": "ring", "size": 3, "scale": 2}) == ("ring", 3, "r", 2)
    assert "made_parts.shapes" in sys.modules


def test_the_program_gives_what_a_part_has_room_for(parts):
    assert parts.build({"type": "Square", "side": 1}, given=7, other=8).given == 7


@pytest.mark.parametrize(
    ("node", "message", "hint"),
    [
        ({"type": "rong", "size": 1}, "no part 'rong'", "did you mean 'ring'?"),
        ({"type": "square", "side": 1}, "no part 'square'", "did you mean 'Square'?"),
        (
            {"type": "ring", "sizes": 1},
            "part 'ring' has no argument 'sizes'",
            "did you mean 'size'?",
        ),
        ({"type": "ring"}, "part 'ring' needs 'size'", None),
        ({"type": "ring", "size": "a"}, "size must be int, got 'a'", None),
        ({"type": "ring", "size": True}, "size must be int, got True", None),
        ({"type": "Square", "side": 1, "given": 2}, "has no argument 'given'", "choose from: side"),
        ({}, "no part 'None'", "choose from: Square, ring"),
    ],
)
def test_a_wrong_node_is_named_with_the_nearest(parts, node, message, hint):
    with pytest.raises(ConfigError) as caught:
        parts.build(node)
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_second_part_of_a_name_is_refused(parts):
    def ring() -> None: ...

    with pytest.raises(ConfigError, match="exists already"):
        parts.register(ring)


def test_a_part_registered_by_a_users_module_joins(parts):
    def hexagon(sides: int = 6) -> int:
        """Six sides."""
        return sides

    parts.register(hexagon)
    assert "hexagon" in parts.names()
    assert parts.build({"type": "hexagon"}) == 6


def test_shipped_models_are_listed():
    assert "unet" in MODELS.names()


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, "int", True),
        (1, "float", True),
        (1.0, "int", False),
        (None, "int | None", True),
        ("a", "Literal['a', 'b']", True),
        ("c", "Literal['a', 'b']", False),
        ("a|b", "Literal['a|b'] | None", True),
        ([1], "list[float]", True),
        (1, "list[float] | None", False),
        (object(), "nn.Module", True),
        ({}, "Mapping[str, int]", True),
    ],
)
def test_plain_types_are_told_apart(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_a_module_may_hold_a_registry_of_its_own():
    assert "cosine" in Registry("schedule", "hatcli.engine.schedules").names()
