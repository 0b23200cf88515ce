"""A closer look at single layers: histograms of weights and results, float against quantized."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hatcli.quantize.analysis.places import Place, Walk, find_places
from hatcli.quantize.quantizers import ActivationQuantizer

BINS = 64
POINTS = 2000


@torch.no_grad()
def describe_layers(
    graph: fx.GraphModule,
    reference: fx.GraphModule,
    names: Sequence[str],
    batch: Tensor,
) -> dict[str, dict[str, Any]]:
    """For each layer named, of one batch: what a picture of it is drawn from.

    Args:
        graph: calibrated, in mode "quantize".
        reference: the same before calibration, in mode "float".
        batch: (N, 3, H, W) float32.

    Returns:
        name -> "weight_low", "weight_high" and "weight_hist" where it has weights, "code_low"
        and "code_high" where its result is on a grid, "activation_hist", and "scatter":
        {"float": [...], "integer": [...]}, the same places of its result in float and in the
        quantized graph. A histogram is {"edges", "counts"}.
    """
    places = {place.name: place for place in find_places(reference) if place.name in names}
    exact = _results(reference, places, batch)
    # Both graphs have the same nodes in the same order, each its own objects.
    other_places = {place.name: place for place in find_places(graph)}
    other = _results(graph, {name: other_places[name] for name in places}, batch)
    found = {}
    for name in places:
        step = max(1, exact[name].size // POINTS)
        found[name] = {
            **_weights(reference, places[name]),
            **_codes(graph, other_places[name]),
            "activation_hist": histogram(exact[name]),
            "scatter": {
                "float": exact[name][::step][:POINTS].tolist(),
                "integer": other[name][::step][:POINTS].tolist(),
            },
        }
    return found


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    """{"edges": n + 1 of them, "counts": n} of values (n,) float32."""
    counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _results(
    graph: fx.GraphModule, places: Mapping[str, Place], batch: Tensor
) -> dict[str, np.ndarray]:
    walk = Walk(graph)
    values = walk.images(batch)
    ends = {place.ends[0]: name for name, place in places.items()}
    return {
        ends[node]: values[node].cpu().contiguous().numpy().reshape(-1).copy()
        for node in walk.run(values)
        if node in ends
    }


def _codes(graph: fx.GraphModule, place: Place) -> dict[str, float]:
    """The ends of a layer's codes, in the units of its result."""
    if not place.quantizers:
        return {}
    quantizer = graph.get_submodule(str(place.quantizers[0].target))
    assert isinstance(quantizer, ActivationQuantizer)
    scale = quantizer.grid.scale
    low, high = quantizer.bounds
    return {"code_low": scale * low, "code_high": scale * high}


def _weights(reference: fx.GraphModule, place: Place) -> dict[str, Any]:
    layer = reference.get_submodule(place.name) if place.layers else None
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return {}
    values = weight.detach().cpu().numpy().reshape(-1)
    return {
        "weight_low": float(values.min()),
        "weight_high": float(values.max()),
        "weight_hist": histogram(values),
    }
