"""From a model to a graph of its operations, on torch.fx's public tracer.

A forward that branches on values can't be traced; the error names the line that does.
"""

import copy
import inspect
import operator
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Proxy, Tracer

from hatcli.errors import ConfigError, HatError, did_you_mean

_TORCH = str(Path(torch.__file__).parent)
_ROOT = "model"  # what `_OneInput` calls the model


def trace(model: nn.Module, leaf_modules: Sequence[str] = ()) -> GraphModule:
    """The operations of a copy of the model in eval mode, from "images" to one tensor.

    Modules of torch are one node each, and so are those that ``leaf_modules`` names. The ``meta``
    of each node holds "scope", the path of the module whose forward calls it; "where", the file
    and line that does; and "listed", whether ``leaf_modules`` names it.

    Args:
        leaf_modules: glob patterns of module paths.

    Raises:
        ConfigError: a pattern matches no module.
        HatError: the model can't be traced, or has several inputs or outputs.
    """
    leaves = _matches(model, leaf_modules)
    _require_one_input(model)
    tracer = _Tracer(leaves)
    copied = copy.deepcopy(model).eval()
    if tracer.is_leaf_module(copied, ""):
        copied = nn.Sequential(OrderedDict(layer=copied))
    wrapped = _OneInput(copied)
    try:
        graph = tracer.trace(wrapped)
    except Exception as error:
        raise _untraceable(model, error) from error
    _require_one_output(model, graph.output_node())
    for node in graph.find_nodes(op="get_attr"):
        if hasattr(wrapped, node.target):  # a tensor that forward makes out of numbers
            setattr(wrapped.model, node.target, getattr(wrapped, node.target))
    return GraphModule(wrapped.model, graph, class_name=type(model).__name__)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what torch's class does: it may be a subclass, not an override."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        return False
    own = getattr(type(module), "_conv_forward", None)
    return own is getattr(kind, "_conv_forward", None)


class _OneInput(nn.Module):
    """Calls a model with one argument, so that its other ones keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Proxy(Proxy):
    """torch's takes ``x += y`` for ``x = x + y``, which differs where x has a second name."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(Tracer):
    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self._leaves = leaves
        self._scopes = [""]

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def path_of_module(self, mod: nn.Module) -> str:
        return _without_root(super().path_of_module(mod))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return module_qualified_name in self._leaves
        torchs = (
            base
            for base in type(m).__mro__
            if base.__module__.startswith("torch.nn") and base is not nn.Module
        )
        return module_qualified_name in self._leaves or any(is_plain(m, base) for base in torchs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self._scopes.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._scopes.pop()

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        if kind == "get_attr":
            target = _without_root(target)
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["scope"] = self._scopes[-1]
        node.meta["where"] = _user_line()
        node.meta["listed"] = kind == "call_module" and target in self._leaves
        return node


def _without_root(path: str) -> str:
    return "" if path == _ROOT else path.removeprefix(f"{_ROOT}.")


def _matches(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    paths = [path for path, _ in model.named_modules() if path]
    found = set[str]()
    for pattern in patterns:
        matched = {path for path in paths if fnmatchcase(path, pattern)}
        if not matched:
            raise ConfigError(
                f"quantize.leaf_modules: no module matches {pattern!r}",
                did_you_mean(pattern, paths),
            )
        found |= matched
    return frozenset(found)


def _require_one_input(model: nn.Module) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise HatError(
            f"model {type(model).__name__}: forward needs {len(needed)} inputs "
            f"({', '.join(needed)}), and only a model of one, the images, can be quantized",
            "make a module whose forward takes the images alone and calls this one",
        )


def _require_one_output(model: nn.Module, output: Node) -> None:
    result = output.args[0]
    if isinstance(result, Node):
        return
    many = f" of {len(result)}" if isinstance(result, list | tuple | dict) else ""
    kind = type(result).__name__.removeprefix("immutable_")
    raise HatError(
        f"model {type(model).__name__}: forward returns a {kind}{many}, and "
        "only a model of one tensor can be quantized",
        "keep one head of it, as 'deploy.head' in the config does",
    )


def _untraceable(model: nn.Module, error: Exception) -> HatError:
    """Name the innermost line that isn't torch's own or this file's."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)
    ]
    hint = (
        "let the line depend on constants alone, or name its module in quantize.leaf_modules and "
        "keep it float by quantize.exceptions"
    )
    if not frames:
        return HatError(f"model {type(model).__name__}: can't be traced: {reason}", hint)
    last = frames[-1]
    return HatError(
        f"{_shown(last.filename)}:{last.lineno}: can't be traced: '{last.line}': {reason}", hint
    )


def _user_line() -> str:
    """The innermost line of the model's own sources, "file:line"; "" where there is none."""
    frame = inspect.currentframe()
    while frame is not None and not _is_users(frame.f_code.co_filename):
        if frame.f_code is _OneInput.forward.__code__:  # what lies behind it called `trace`
            return ""
        frame = frame.f_back
    return "" if frame is None else f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno}"


def _is_users(filename: str) -> bool:
    return not filename.startswith((_TORCH, __file__, "<"))


def _shown(filename: str) -> str:
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename
