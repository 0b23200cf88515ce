"""Named parts, found by reading sources: names and arguments are known before any import.

A part is a function or class with the decorator ``@SOME_REGISTRY.register`` in a file of the
registry's package. Adding one is adding a file. `build` imports only the file that it needs.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hatcli.errors import ConfigError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

user_files: set[str] = set()
"""What `import_file` has tried: an error in these is no defect of the program."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a part.

    Attributes:
        annotation: as it is written in the source, e.g. "int | None"; "" when there is none.
        required: whether it has no default.
    """

    name: str
    annotation: str
    required: bool


@dataclass(frozen=True)
class Part:
    """What is known of a registered part without importing it.

    Attributes:
        module: dotted name of the module that defines it.
        summary: first line of its docstring.
    """

    name: str
    module: str
    parameters: tuple[Parameter, ...]
    summary: str


class Registry:
    """The parts of one kind.

    Args:
        kind: what one part is called in messages, e.g. "model".
        package: dotted name of the package (or module) whose sources hold the parts.
        given: parameters that the program supplies at `build`; configs can't set them.
        skip: files of the package, without ".py", that hold parts of another kind.
    """

    def __init__(
        self, kind: str, package: str, given: Iterable[str] = (), skip: Iterable[str] = ()
    ) -> None:
        self.kind = kind
        self.package = package
        self.given = frozenset(given)
        self.skip = frozenset(skip)
        self._imported: dict[str, Callable[..., Any]] = {}
        self._joined: dict[str, Part] = {}

    def register(self, part: F) -> F:
        """Add a function or class under its own name; a second one of that name is an error."""
        name = part.__name__
        known = self._imported.get(name)
        shipped = self._shipped.get(name)
        if (known is not None and known.__module__ != part.__module__) or (
            shipped is not None and shipped.module != part.__module__
        ):
            raise ConfigError(f"{part.__module__}: a {self.kind} named {name!r} exists already")
        self._imported[name] = part
        if shipped is None:
            self._joined[name] = _part_from_object(part)
        return part

    def names(self) -> list[str]:
        """All names, sorted: those of this package, then those that users' modules added."""
        return sorted({*self._shipped, *self._joined})

    def part(self, name: str) -> Part:
        """What is known of one part.

        Raises:
            ConfigError: no part has this name; the message offers the nearest.
        """
        found = self._shipped.get(name) or self._joined.get(name)
        if found is None:
            raise ConfigError(f"no {self.kind} {name!r}", did_you_mean(name, self.names()))
        return found

    def build(self, node: Mapping[str, Any], **given: Any) -> Any:
        """Call the part that ``node["type"]`` names with the node's other entries.

        Args:
            node: {"type": name, argument: value, ...}.
            given: arguments that come from the program; the part takes those it has.

        Raises:
            ConfigError: the name is unknown, or an argument is unknown or missing.
        """
        arguments = {key: value for key, value in node.items() if key != "type"}
        part = self.part(str(node.get("type")))
        self.check_arguments(part, arguments)
        if part.name not in self._imported:
            importlib.import_module(part.module)
        accepted = {parameter.name for parameter in part.parameters}
        given = {key: value for key, value in given.items() if key in accepted}
        return self._imported[part.name](**arguments, **given)

    def check_node(self, where: str, node: Any) -> None:
        """Refuse what `build` would refuse, without an import; ``where`` the node stands.

        Raises:
            ConfigError: it is no dict with a type, or its name or an argument is wrong.
        """
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
            raise ConfigError(f"{where}: must be a dict with a 'type', got {node!r}")
        arguments = {key: value for key, value in node.items() if key != "type"}
        try:
            self.check_arguments(self.part(node["type"]), arguments)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", error.hint) from error

    def check_arguments(self, part: Part, arguments: Mapping[str, Any]) -> None:
        """Refuse unknown and missing arguments, and values of a plainly wrong type."""
        offered = {p.name: p for p in part.parameters if p.name not in self.given}
        for name, value in arguments.items():
            if name not in offered:
                raise ConfigError(
                    f"{self.kind} {part.name!r} has no argument {name!r}",
                    did_you_mean(name, offered),
                )
            if not fits(value, offered[name].annotation):
                raise ConfigError(
                    f"{self.kind} {part.name!r}: {name} must be "
                    f"{offered[name].annotation}, got {value!r}"
                )
        for parameter in offered.values():
            if parameter.required and parameter.name not in arguments:
                raise ConfigError(f"{self.kind} {part.name!r} needs {parameter.name!r}")

    @cached_property
    def _shipped(self) -> dict[str, Part]:
        """The parts of the registry's own package, by name, from its sources."""
        parts: dict[str, Part] = {}
        for module, path in _sources(self.package):
            if path.stem in self.skip:
                continue
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_registered(node):
                    parts[node.name] = _part_from_source(node, module)
        return parts


def import_file(path: Path, where: str) -> ModuleType:
    """A user's file as a module, by its name, so that spawned workers can import it again.

    Args:
        path: of the file; its folder is added to those that modules come from.
        where: what messages say first.

    Raises:
        ConfigError: there is no such file, another module has its name, or it fails.
    """
    if not path.is_file():
        there = [found.name for found in sorted(path.parent.glob("*.py"))]
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f"did you mean {str(path.with_name(near[0]))!r}?" if near else None
        raise ConfigError(f"{where}: no such file: {path}", hint)
    user_files.add(str(path.resolve()))
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(path.stem)
    except ConfigError:
        raise
    except Exception as error:
        name = type(error).__name__
        raise ConfigError(f"{where}: {str(path)!r} fails: {name}: {error}") from error
    found = Path(module.__file__ or "")
    if found.resolve() != path.resolve():
        raise ConfigError(f"{where}: {path} is hidden by {found}", "give the file another name")
    return module


def fits(value: object, annotation: str) -> bool:
    """Whether a config's value may be passed where the source says ``annotation``.

    Only what can be told for certain is refused: unknown annotations fit everything.
    """
    options = [option.strip() for option in _split_union(annotation)]
    return any(_fits_one(value, option) for option in options)


_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def _fits_one(value: object, option: str) -> bool:
    base = option.partition("[")[0]
    if base == "Literal":
        return value in ast.literal_eval(f"({option[len('Literal[') : -1]},)")
    if base in ("Sequence", "list", "tuple"):
        return isinstance(value, list | tuple)
    if base in ("Mapping", "dict"):
        return isinstance(value, Mapping)
    if option not in _PLAIN:
        return True
    if isinstance(value, bool):
        return option == "bool"
    return isinstance(value, _PLAIN[option])


def _split_union(annotation: str) -> list[str]:
    """'int | Literal["a|b"]' -> its members, split outside brackets only."""
    members, depth, start = [], 0, 0
    for position, character in enumerate(annotation):
        depth += (character in "[(") - (character in "])")
        if character == "|" and depth == 0:
            members.append(annotation[start:position])
            start = position + 1
    return [*members, annotation[start:]]


def _sources(package: str) -> list[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(package)
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [(package, origin)]
    files = sorted(path for path in origin.parent.glob("*.py") if path.name != "__init__.py")
    return [(f"{package}.{path.stem}", path) for path in files]


def _is_registered(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(
        isinstance(decorator, ast.Attribute) and decorator.attr == "register"
        for decorator in node.decorator_list
    )


def _part_from_source(node: ast.FunctionDef | ast.ClassDef, module: str) -> Part:
    function: ast.FunctionDef | None
    if isinstance(node, ast.ClassDef):
        methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
        function = next((method for method in methods if method.name == "__init__"), None)
    else:
        function = node
    parameters: tuple[Parameter, ...] = ()
    if function is not None:
        positional = [*function.args.posonlyargs, *function.args.args]
        if isinstance(node, ast.ClassDef):
            positional = positional[1:]
        required = len(positional) - len(function.args.defaults)
        parameters = tuple(
            [_parameter(arg, index < required) for index, arg in enumerate(positional)]
            + [
                _parameter(arg, default is None)
                for arg, default in zip(
                    function.args.kwonlyargs, function.args.kw_defaults, strict=True
                )
            ]
        )
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    return Part(node.name, module, parameters, summary)


def _parameter(argument: ast.arg, required: bool) -> Parameter:
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    return Parameter(argument.arg, annotation, required)


def _part_from_object(part: Callable[..., Any]) -> Part:
    parameters = tuple(
        Parameter(p.name, _annotation_text(p.annotation), p.default is p.empty)
        for p in inspect.signature(part).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )
    summary = (inspect.getdoc(part) or "").partition("\n")[0]
    return Part(part.__name__, part.__module__, parameters, summary)


def _annotation_text(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
