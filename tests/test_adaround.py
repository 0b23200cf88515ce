import copy

import pytest
import torch
import torch.nn.functional as F
from small_graphs import conv, finished, graph_of, linear, quantizer, residual_net
from torch import nn

from hatcli.errors import HatError, UsageError
from hatcli.events import Note, Progress
from hatcli.quantize.adaround import round_weights
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.layers import weighted_layers
from hatcli.quantize.patches import patches, pick_places, results
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.rounding import Problem, learn_codes
from hatcli.quantize.spec import AdaRoundSpec, read_spec
from hatcli.recipes.training.calibrate import calibrate_graph

QUICK = AdaRoundSpec(iterations=150)


def images(number=8, seed=0, size=8):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def calibrated(batches, **kinds):
    graph = residual_net(**kinds)
    finished(calibrate(graph, batches, total=1))
    return graph


def outputs(graph, batch):
    with torch.no_grad():
        return graph(batch)


def error(graph, wanted, batch):
    return float((outputs(graph, batch) - wanted).square().mean())


def codes_of(graph):
    return {
        name: layer.weight_quantizer.codes(layer.weight).clone()
        for name, layer in weighted_layers(graph).items()
    }


# --- the optimisation


def problem(seed=0, activation=None, groups=1, places=400, width=12, outs=6, highest=3):
    """Correlated inputs, on which rounding to the nearest is far from the best."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, 4, width, generator=generator)
    inputs = torch.randn(groups, places, 4, generator=generator) @ mix
    inputs = (inputs + 0.1 * torch.randn(groups, places, width, generator=generator)).relu()
    weight = torch.randn(groups, outs, width, generator=generator)
    bias = torch.randn(groups, 1, outs, generator=generator)
    scale = weight.abs().amax(2).reshape(-1) / highest
    targets = inputs @ weight.transpose(1, 2) + bias
    return Problem(weight, scale, highest, bias, inputs, targets, activation)


def squared_error(given, codes):
    weight = codes * given.scale.reshape(*codes.shape[:2], 1)
    found = given.inputs @ weight.transpose(1, 2) + given.bias
    wanted = given.targets
    if given.activation:
        apply = {"relu": F.relu, "relu6": F.relu6}[given.activation]
        found, wanted = apply(found), apply(wanted)
    return float((found - wanted).square().mean())


def learned(given, **settings):
    generator = torch.Generator().manual_seed(0)
    return learn_codes(given, AdaRoundSpec(**{"iterations": 400, **settings}), generator)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("groups", [1, 4])
def test_learned_codes_are_much_nearer_than_the_nearest(activation, groups):
    given = problem(activation=activation, groups=groups)
    steps = given.weight / given.scale.reshape(groups, -1, 1)
    codes = learned(given)
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) <= given.highest
    assert float((codes - steps).abs().max()) < 1  # up or down, nothing else
    assert squared_error(given, codes) < 0.6 * squared_error(given, steps.round())


def test_few_weights_get_nearly_the_best_codes_there_are():
    given = problem(width=6, outs=1, seed=3)
    floor = (given.weight / given.scale[:, None]).floor().clamp(-3, 2)
    ups = torch.cartesian_prod(*[torch.arange(2.0)] * 6)
    best = sorted(squared_error(given, floor + up) for up in ups)
    found = squared_error(given, learned(given))
    nearest = squared_error(given, (given.weight / given.scale[:, None]).round())
    assert found <= best[2] * 1.0001 < nearest


def test_weights_on_the_grid_stay():
    given = problem()
    steps = (given.weight / given.scale.reshape(1, -1, 1)).round()
    on_grid = steps * given.scale.reshape(1, -1, 1)
    again = Problem(
        on_grid, given.scale, 3, given.bias, given.inputs, given.targets, given.activation
    )
    assert torch.equal(learned(again), steps)


def test_weights_beyond_the_grid_get_its_last_codes():
    given = problem()
    narrow = Problem(
        given.weight, given.scale / 4, 3, given.bias, given.inputs, given.targets, None
    )
    steps = narrow.weight / narrow.scale.reshape(1, -1, 1)
    codes = learned(narrow)
    assert float(codes.abs().max()) == 3
    assert bool((codes[steps > 3.5] == 3).all())
    assert bool((codes[steps < -3.5] == -3).all())


# --- places


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_times_weights_are_the_results(groups, stride):
    layer = conv(6, 12, 3, groups=groups)
    layer.weight_quantizer = None
    layer.stride, layer.dilation, layer.padding = (stride, 1), (1, 2), (2, 1, 0, 3)
    x = torch.randn(4, 6, 9, 7)
    y = layer(x).detach()
    (places,) = pick_places([y], 5, torch.Generator().manual_seed(0))
    rows = patches(layer, x, places)
    weight = layer.weight.detach().reshape(groups, 12 // groups, -1)
    found = rows @ weight.transpose(1, 2) + layer.bias.detach().reshape(groups, 1, -1)
    assert rows.shape[1] == 20
    assert torch.allclose(found, results(y, places, groups), atol=1e-5)
    (everywhere,) = pick_places([y], 10**6, torch.Generator())
    assert len(everywhere[0]) == 4 * y.shape[2] * y.shape[3]
    assert len(set(zip(*(index.tolist() for index in everywhere), strict=True))) == len(
        everywhere[0]
    )


# --- whole graphs


def test_scores_come_nearer_than_by_bias_correction_alone():
    batches = [images(16, seed, 16) for seed in range(2)]
    rounded, corrected = (calibrated(batches, weight_bits=3) for _ in range(2))
    set_mode(rounded, "float")
    wanted = {seed: outputs(rounded, images(16, seed, 16)) for seed in (0, 7)}
    set_mode(rounded, "quantize")
    finished(correct_biases(corrected, batches))
    findings, events = finished(round_weights(rounded, batches, QUICK))
    assert findings == []
    assert events[-1] == Progress("rounding weights", 4, 4, "layers")
    for seed, scores in wanted.items():  # seen and unseen
        batch = images(16, seed, 16)
        assert error(rounded, scores, batch) < 0.8 * error(corrected, scores, batch)


def test_weights_lie_on_the_grid_beside_where_they_were():
    graph = calibrated([images()], weight_bits=4)
    before = copy.deepcopy(graph)
    finished(round_weights(graph, [images()], QUICK))
    nearest, moved = codes_of(before), 0
    for name, layer in weighted_layers(graph).items():
        scale = layer.weight_quantizer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        codes = layer.weight_quantizer.codes(layer.weight)
        assert torch.equal(layer.weight.detach(), codes * scale)
        old = before.get_submodule(name)
        assert float(((layer.weight - old.weight) / scale).detach().abs().max()) < 1.0001
        moved += int((codes != nearest[name]).sum())
        assert torch.equal(layer.weight_quantizer.scale, old.weight_quantizer.scale)
    assert moved > 20
    fresh = residual_net(weight_bits=4, seed=1)
    fresh.load_state_dict(graph.state_dict())
    set_mode(fresh, "quantize")
    assert torch.equal(outputs(fresh, images()), outputs(graph, images()))


def test_no_mean_error_is_left_unless_biases_are_to_stay():
    batches = [images(8, seed) for seed in range(2)]
    graph = calibrated(batches, weight_bits=3)
    sums = {}

    def means(mode):
        set_mode(graph, mode)
        hook = graph.stem.register_forward_hook(
            lambda _m, _i, y: sums.setdefault(mode, []).append(y.mean((0, 2, 3)))
        )
        for batch in batches:
            outputs(graph, batch)
        hook.remove()
        set_mode(graph, "quantize")
        return torch.stack(sums[mode]).mean(0)

    exact, bias = means("float"), graph.stem.bias.detach().clone()
    kept = copy.deepcopy(graph)
    finished(round_weights(graph, batches, QUICK))
    assert torch.allclose(means("quantize"), exact, atol=1e-5)
    assert not torch.equal(graph.stem.bias, bias)
    finished(round_weights(kept, batches, QUICK, correct=False))
    assert torch.equal(kept.stem.bias, bias)


def test_one_seed_gives_one_result():
    results = []
    for seed in (0, 0, 1):
        graph = calibrated([images()], weight_bits=3)
        spec = AdaRoundSpec(iterations=40, seed=seed)
        finished(round_weights(graph, [images()], spec))
        results.append(codes_of(graph))
    same, other = (
        all(torch.equal(results[0][name], results[index][name]) for name in results[0])
        for index in (1, 2)
    )
    assert same
    assert not other


def test_memory_bounds_the_images():
    batches = [images(4, seed) for seed in range(3)]
    graph = calibrated(batches)
    _, events = finished(round_weights(graph, batches, QUICK, memory_limit=160 * 1024))
    notes = [str(event) for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert notes[0].startswith("AdaRound looks at ")
    assert " of 12 images: " in notes[0]


def test_layers_that_cannot_be_rounded_alone_are_named():
    kept, shared = conv(3, 3), conv(3, 3)
    kept.bn = nn.BatchNorm2d(3)
    graph = graph_of([("kept", kept), ("shared", shared), ("head", conv(3, 4))])
    node = next(iter(graph.graph.find_nodes(op="call_module", target="shared")))
    with graph.graph.inserting_after(node):
        second = graph.graph.call_module("shared", (node,))
    node.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
    graph.recompile()
    finished(calibrate(graph, [images()], total=8))
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    findings, _ = finished(round_weights(graph, [images()], QUICK))
    assert [str(finding) for finding in findings] == [
        "kept: its weights are rounded to the nearest: its batch norm isn't folded",
        "shared: its weights are rounded to the nearest: it runs 2 times",
    ]
    changed = [k for k, value in graph.state_dict().items() if not torch.equal(value, before[k])]
    assert changed == ["head.weight", "head.bias"]


def test_a_classifier_alone_is_rounded_too():
    graph = graph_of(
        [("head", linear(6, 3, weight_bits=3)), ("head.output_quantizer", quantizer())]
    )
    batch = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    wanted = outputs(graph, batch)
    finished(calibrate(graph, [batch], total=64))
    before = error(graph, wanted, batch)
    finished(round_weights(graph, [batch], QUICK))
    assert error(graph, wanted, batch) < 0.5 * before


def test_a_failure_or_a_stop_leaves_weights_and_biases_as_they_were():
    graph = calibrated([images()], weight_bits=3)
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    job = round_weights(graph, [images()], QUICK)
    for _ in range(3):
        next(job)
    assert any(not torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    job.close()
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    broken = images()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(HatError, match=r"^stem: NaN or inf in its result while"):
        finished(round_weights(graph, [broken], QUICK))
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    modes = {layer.weight_quantizer.mode for layer in weighted_layers(graph).values()}
    assert modes == {"quantize"}


def test_no_images_is_an_error():
    graph = calibrated([images()])
    with pytest.raises(UsageError, match=r"^rounding weights: there are no images$"):
        finished(round_weights(graph, [images(0)], QUICK))


class _Source(list):
    """Batches that are read anew by each pass, and kept."""

    @property
    def images(self):
        return sum(map(len, self))

    @property
    def kept(self):
        return list(self)


def test_a_calibration_runs_its_passes_in_the_order_that_each_needs():
    source = _Source([images(8, 0, 16), images(8, 1, 16)])
    node = {"weight_bits": 4, "weight_granularity": "tensor"}
    settings = {"equalize": True, "adaround": {"iterations": 50}}
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1)
    ).eval()
    scores = {}
    for name, more in {"plain": {"bias_correction": False}, "all": settings}.items():
        spec = read_spec({**node, **more})
        graph = prepare(net, spec)
        _, events = finished(calibrate_graph(graph, source, spec))
        scores[name] = error(graph, outputs(net, images(16, 5, 16)), images(16, 5, 16))
    order = list(dict.fromkeys(event.activity for event in events if isinstance(event, Progress)))
    assert order == ["equalising", "calibrating", "rounding weights"]
    assert scores["all"] < scores["plain"]
