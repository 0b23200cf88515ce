"""From a float model to a graph that can fake-quantize: the first pass of all."""

from typing import cast

import torch
from torch import nn
from torch.fx import GraphModule, Node

from hatcli.errors import ConfigError
from hatcli.quantize.graph.fuse import erase, fuse
from hatcli.quantize.graph.normalise import normalise
from hatcli.quantize.graph.operations import whole_factor
from hatcli.quantize.graph.tracing import trace
from hatcli.quantize.layers import QuantConv2d, QuantLinear, UpsampleBilinear2x
from hatcli.quantize.quantizers import Activation, ActivationQuantizer, WeightQuantizer
from hatcli.quantize.spec import Spec

INPUT = "input"  # what exceptions call the images, in place of a layer's name


def prepare(model: nn.Module, spec: Spec, *, fold_batch_norm: bool = True) -> GraphModule:
    """A graph that computes what the model does, with a quantizer wherever integers will stand.

    It is a copy in eval mode, on the model's device, its quantizers in mode "float". The names of
    its layers are the paths of the model's modules; that of an operation is the path of the
    module whose forward calls it, and what it is: "layer1.0.add", a second one "add_1".

    Args:
        fold_batch_norm: whether batch norms go into weights and biases at once; else they stay
            behind their convolutions, for training.

    Raises:
        ConfigError: an exception or a leaf module of the spec names nothing, or a batch norm
            that is kept stands behind a weight with a single scale.
        HatError: the model can't be traced or has a layer that can't be quantized.
    """
    traced = trace(model, spec.leaf_modules)
    graph = normalise(traced, lambda name: spec.layer(name).is_float)
    fuse(graph, fold_batch_norm=fold_batch_norm)
    inserter = _Inserter(graph, spec, next(iter(graph.parameters()), torch.empty(0)).device)
    inserter.take_in_relus()
    graph.delete_all_unused_submodules()
    layers = [str(node.target) for node in graph.graph.find_nodes(op="call_module")]
    spec.require_matches([*layers, INPUT])
    for node in list(graph.graph.nodes):
        inserter.quantize(node)
    inserter.share_grids()
    graph.graph.lint()
    graph.recompile()
    return graph.eval()


class _Inserter:
    """Puts quantizers into a fused graph, from its input to its output.

    A tensor is on a grid if its node is a key of ``_grids``; the value names the quantizer.
    """

    def __init__(self, graph: GraphModule, spec: Spec, device: torch.device) -> None:
        self._graph = graph
        self._spec = spec
        self._device = device
        self._target = spec.build_target()
        self._activations: dict[Node, Activation] = {}
        self._grids: dict[Node, str] = {}

    def take_in_relus(self) -> None:
        """Erase the ReLUs that a quantizer will apply; remember which one."""
        for node in list(self._graph.graph.nodes):
            kind = self._relu(node)
            if kind is None:
                continue
            producer = node.all_input_nodes[0]
            while self._moves_codes(producer) and len(producer.users) == 1:
                producer = producer.all_input_nodes[0]  # a ReLU may as well come before these
            if len(producer.users) > 1 or not self._has_own_grid(producer, node):
                continue
            known = self._activations.get(producer, kind)
            self._activations[producer] = "relu" if known == kind == "relu" else "relu6"
            erase(self._graph, node)

    def quantize(self, node: Node) -> None:
        """Give one layer the quantizers that it needs; those before it have theirs."""
        if node.op == "placeholder":
            if self._wants_grid(node):
                self._insert(node, "input_quantizer", INPUT)
        elif node.op == "call_module":
            name = str(node.target)
            if self._moves_codes(node):
                if node.all_input_nodes[0] in self._grids:
                    self._grids[node] = self._grids[node.all_input_nodes[0]]
                return
            is_float = self._is_float(node)
            if not is_float:
                self._quantize_weight(name)
            if not is_float and isinstance(self._module(node), UpsampleBilinear2x):
                self._call(
                    node, self._grids[node.all_input_nodes[0]]
                )  # an average stays in the range
            elif not is_float or self._wants_grid(node):
                self._insert(node, f"{name}.output_quantizer", name)

    def share_grids(self) -> None:
        """Give one leader to all quantizers around each layer that the target wants it of.

        Tensors of another width can't share the grid, nor those whose grid is fixed.
        """
        for node, name in self._grids.items():
            layer = node.all_input_nodes[0] if node.all_input_nodes else node
            kind = type(self._module(layer)).__name__
            if kind in self._target.shared and not self._is_float(layer):
                self._join([name, *(self._grids[source] for source in layer.all_input_nodes)])

    def _join(self, names: list[str]) -> None:
        quantizers = [cast("ActivationQuantizer", self._graph.get_submodule(n)) for n in names]
        free = [quantizer for quantizer in quantizers if quantizer.fixed_grid is None]
        for bits in {quantizer.bits for quantizer in free}:
            joined = [q for q in free if q.bits == bits]
            first, *others = dict.fromkeys(next(iter(q.leader), q) for q in joined)
            for module in self._graph.modules():
                if isinstance(module, ActivationQuantizer) and (
                    module in others or any(leader in others for leader in module.leader)
                ):
                    module.leader = (first,)

    def _insert(self, node: Node, quantizer: str, layer: str) -> None:
        settings = self._spec.layer(layer)
        module = ActivationQuantizer(
            self._activations.get(node),
            settings.activation_bits,
            dict(settings.observer),
            self._target,
        )
        if layer == INPUT and self._target.input_grid is not None:
            module.fixed_grid = self._target.input_grid(module.bits)
            module.set_grid(module.fixed_grid)
        self._graph.add_submodule(quantizer, module.to(self._device))
        self._call(node, quantizer)

    def _call(self, node: Node, quantizer: str) -> None:
        with self._graph.graph.inserting_after(node):
            call = self._graph.graph.call_module(quantizer, (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
        self._grids[call] = quantizer

    def _quantize_weight(self, name: str) -> None:
        layer, settings = self._graph.get_submodule(name), self._spec.layer(name)
        if isinstance(layer, QuantConv2d | QuantLinear):
            per_tensor = settings.weight_granularity == "tensor"
            if per_tensor and isinstance(layer, QuantConv2d) and layer.bn is not None:
                raise ConfigError(
                    f"{name}: one scale for the whole weight needs a folded batch norm",
                    "set quantize.qat.batch_norm='folded' or quantize.weight_granularity='channel'",
                )
            layer.weight_quantizer = WeightQuantizer(
                1 if per_tensor else len(layer.weight),
                settings.weight_bits,
                dict(settings.weight_observer),
                power_of_two=self._target.power_of_two,
            ).to(self._device)

    def _wants_grid(self, node: Node) -> bool:
        """Whether an integer layer takes a float layer's result."""
        return any(
            self._wants_grid(user)
            if self._moves_codes(user)
            else user.op == "call_module" and self._relu(user) is None and not self._is_float(user)
            for user in node.users
        )

    def _has_own_grid(self, node: Node, relu: Node) -> bool:
        """Whether a quantizer will be right behind a layer, so that it can take in a ReLU."""
        if node.op != "call_module" or self._relu(node) or self._moves_codes(node):
            return False
        if self._is_float(node):
            return self._wants_grid(relu)
        return not isinstance(self._module(node), UpsampleBilinear2x)

    def _is_float(self, node: Node) -> bool:
        if self._relu(node) and node.all_input_nodes[0] not in self._grids:
            return True  # between float layers
        return self._spec.layer(str(node.target)).is_float

    def _moves_codes(self, node: Node) -> bool:
        module = self._module(node)
        return isinstance(module, nn.MaxPool2d | nn.Flatten | nn.ZeroPad2d) or (
            module is not None and whole_factor(module)
        )

    def _relu(self, node: Node) -> Activation | None:
        module = self._module(node)
        if isinstance(module, nn.ReLU6):
            return "relu6"
        return "relu" if isinstance(module, nn.ReLU) else None

    def _module(self, node: Node) -> nn.Module | None:
        return self._graph.get_submodule(str(node.target)) if node.op == "call_module" else None
