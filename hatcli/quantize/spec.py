"""How to quantize, as data: the config's ``quantize`` node, checked without torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from hatcli.errors import ConfigError, did_you_mean
from hatcli.quantize import OBSERVERS, TARGETS
from hatcli.quantize.target import Target
from hatcli.registry import fits

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = (8, 16)
GRANULARITIES = "Literal['channel', 'tensor']"

_TYPES = {
    "target": "str",
    "target_options": "dict",
    "observer": "dict",
    "weight_observer": "dict",
    "weight_bits": "int",
    "activation_bits": "int",
    "weight_granularity": GRANULARITIES,
    "images": "int",
    "equalize": "bool",
    "adaround": "bool | dict",
    "bias_correction": "bool",
    "exceptions": "list",
    "leaf_modules": "list",
    "qat": "dict",
}
_EXCEPTION_TYPES = {
    "layers": "str",
    "float": "bool",
    "activation_bits": "int",
    "weight_bits": "int",
    "weight_granularity": GRANULARITIES,
    "observer": "dict",
    "weight_observer": "dict",
}
_ADAROUND_TYPES = {"iterations": "int", "learning_rate": "float", "seed": "int"}
_QAT_TYPES = {
    "scales": "Literal['fixed', 'learned']",
    "batch_norm": "Literal['folded', 'kept']",
    "freeze_after": "int",
    "distill": "float",
    "temperature": "float",
}


@dataclass(frozen=True)
class LayerSpec:
    """How one layer is computed.

    Attributes:
        is_float: in float32, weights and result; the tensors that come in are those of the
            integer layers before it.
        weight_bits: 2 to 8; stored as int8 codes, symmetric.
        activation_bits: of its result, 8 or 16, unsigned with a zero point.
        observer: what chooses the range of its result: {"type": name, ...}.
        weight_observer: what chooses the ranges of its weights.
        weight_granularity: "channel": a scale for each output channel; "tensor": one for all.
    """

    is_float: bool
    weight_bits: int
    activation_bits: int
    observer: Mapping[str, Any]
    weight_observer: Mapping[str, Any]
    weight_granularity: str


@dataclass(frozen=True)
class AdaRoundSpec:
    """How the rounding of weights is learned.

    Attributes:
        iterations: steps of the optimiser for each layer.
        learning_rate: of Adam.
        seed: of the choice of images and places.
    """

    iterations: int = 200
    learning_rate: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class QatSpec:
    """How a quantized model is trained.

    Attributes:
        scales: "fixed" as calibrated; "learned" with the weights (LSQ).
        batch_norm: "folded" into the convolutions before training; "kept", and folded and
            frozen after ``freeze_after`` epochs.
        distill: weight of the distance to the float model's scores in the loss; 0 is none.
        temperature: that both scores are divided by for this distance.
    """

    scales: str = "fixed"
    batch_norm: str = "folded"
    freeze_after: int = 1
    distill: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Spec:
    """How a model is quantized; see `read_spec` for the node that says so.

    Attributes:
        target: whose arithmetic the integers follow; "ort" is onnxruntime on x86.
        target_options: arguments of the target.
        images: how many training images calibration looks at.
        equalize: whether the channels of neighbouring layers are scaled to alike ranges first.
        adaround: how the rounding of weights is learned; None: they are rounded to the nearest.
        bias_correction: whether biases make up for the mean error of each channel.
        exceptions: {"layers": glob pattern, setting: value, ...}; later ones win.
        leaf_modules: glob patterns of modules that are one operation each, not looked into.
    """

    target: str = "ort"
    target_options: Mapping[str, Any] = field(default_factory=dict)
    observer: Mapping[str, Any] = field(default_factory=lambda: {"type": "percentile"})
    weight_observer: Mapping[str, Any] = field(default_factory=lambda: {"type": "min_max"})
    weight_bits: int = 8
    weight_granularity: str = "channel"
    activation_bits: int = 8
    images: int = 256
    equalize: bool = False
    adaround: AdaRoundSpec | None = None
    bias_correction: bool = True
    exceptions: tuple[Mapping[str, Any], ...] = ()
    leaf_modules: tuple[str, ...] = ()
    qat: QatSpec = field(default_factory=QatSpec)

    def build_target(self) -> Target:
        """The target with its options.

        Raises:
            ConfigError: there is no such target, or an option is wrong.
        """
        if self.target not in TARGETS.names():
            raise ConfigError(
                f"quantize.target: unknown {self.target!r}",
                did_you_mean(self.target, TARGETS.names()),
            )
        try:
            TARGETS.check_arguments(TARGETS.part(self.target), self.target_options)
            target: Target = TARGETS.build({"type": self.target, **self.target_options})
        except ConfigError as error:
            raise ConfigError(f"quantize.target_options: {error.message}", error.hint) from error
        return target

    def layer(self, name: str) -> LayerSpec:
        """The settings of one layer: the general ones, then each exception that names it."""
        settings: dict[str, Any] = {
            "float": False,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "observer": self.observer,
            "weight_observer": self.weight_observer,
            "weight_granularity": self.weight_granularity,
        }
        for exception in self.exceptions:
            if fnmatchcase(name, exception["layers"]):
                settings.update(exception)
        return LayerSpec(
            settings["float"],
            settings["weight_bits"],
            settings["activation_bits"],
            settings["observer"],
            settings["weight_observer"],
            settings["weight_granularity"],
        )

    def require_matches(self, names: Iterable[str]) -> None:
        """Refuse an exception that names no layer of a model.

        Raises:
            ConfigError: with the nearest name.
        """
        known = list(names)
        for exception in self.exceptions:
            pattern = exception["layers"]
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"quantize.exceptions: no layer matches {pattern!r}",
                    did_you_mean(pattern, known),
                )


def read_spec(node: Mapping[str, Any]) -> Spec:
    """The spec of a config's ``quantize`` node; what it leaves out has a default.

    Raises:
        ConfigError: a name or value is wrong.
    """
    _check_types("quantize", node, _TYPES)
    qat = node.get("qat", {})
    _check_types("quantize.qat", qat, _QAT_TYPES)
    exceptions = tuple(node.get("exceptions", ()))
    for position, exception in enumerate(exceptions):
        _check_exception(f"quantize.exceptions.{position}", exception)
    given = {**node, "exceptions": exceptions, "qat": QatSpec(**qat)}
    given["adaround"] = _adaround(node.get("adaround", False))
    if "leaf_modules" in given:
        given["leaf_modules"] = tuple(given["leaf_modules"])
    spec = Spec(**given)
    _check_numbers("quantize", node)
    target = spec.build_target()
    _check_kept_norms(spec, target)
    if spec.images < 1:
        raise ConfigError(f"quantize.images: must be at least 1, got {spec.images}")
    if spec.qat.freeze_after < 0:
        raise ConfigError("quantize.qat.freeze_after: must not be negative")
    if not (math.isfinite(spec.qat.distill) and spec.qat.distill >= 0):
        raise ConfigError("quantize.qat.distill: must be a number from 0 up")
    if not (math.isfinite(spec.qat.temperature) and spec.qat.temperature > 0):
        raise ConfigError("quantize.qat.temperature: must be a number above 0")
    return spec


def _check_types(where: str, node: Any, types: Mapping[str, str]) -> None:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: must be a dict, got {node!r}")
    for name, value in node.items():
        if name not in types:
            raise ConfigError(f"{where}: no setting {name!r}", did_you_mean(str(name), types))
        if not fits(value, types[name]):
            raise ConfigError(f"{where}.{name}: must be {types[name]}, got {value!r}")


def _adaround(node: Any) -> AdaRoundSpec | None:
    """False is none, True the default, and a dict what differs from it."""
    if isinstance(node, bool):
        return AdaRoundSpec() if node else None
    _check_types("quantize.adaround", node, _ADAROUND_TYPES)
    spec = AdaRoundSpec(**node)
    if spec.iterations < 1:
        raise ConfigError(
            f"quantize.adaround.iterations: must be at least 1, got {spec.iterations}"
        )
    if not (math.isfinite(spec.learning_rate) and spec.learning_rate > 0):
        raise ConfigError("quantize.adaround.learning_rate: must be a number above 0")
    return spec


def _check_kept_norms(spec: Spec, target: Target) -> None:
    """What needs folded batch norms, and would be lost or wrong in a QAT that keeps them."""
    if spec.qat.batch_norm != "kept":
        return
    for setting, is_set in (
        ("weight_granularity='tensor'", spec.weight_granularity == "tensor"),
        ("equalize=true", spec.equalize),
        ("adaround", spec.adaround is not None),
        ("target_options.power_of_two=true", target.power_of_two),
    ):
        if is_set:
            raise ConfigError(
                f"quantize.{setting} needs folded batch norms, and quantize.qat keeps them",
                "set quantize.qat.batch_norm='folded'",
            )


def _check_exception(where: str, node: Any) -> None:
    _check_types(where, node, _EXCEPTION_TYPES)
    if "layers" not in node:
        raise ConfigError(f"{where}: lacks 'layers', the pattern of the layers it is for")
    if len(node) == 1:
        settings = ", ".join(name for name in _EXCEPTION_TYPES if name != "layers")
        raise ConfigError(f"{where}: changes nothing", f"give one of {settings}")
    _check_numbers(where, node)


def _check_numbers(where: str, node: Mapping[str, Any]) -> None:
    """Widths and observers, which the general settings and the exceptions share."""
    for name, allowed in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
        if name in node and node[name] not in allowed:
            widths = ", ".join(map(str, allowed))
            raise ConfigError(
                f"{where}.{name}: {node[name]} bits are not supported", f"choose one of {widths}"
            )
    for name in ("observer", "weight_observer"):
        if name in node:
            OBSERVERS.check_node(f"{where}.{name}", node[name])
