"""Few layers are raised for a budget, and the raised graph is the calibrated one otherwise."""

import math
from copy import deepcopy

import pytest
import torch
from small_graphs import finished
from test_sensitivity import BATCHES, named, quantized, street

from hatcli.errors import ConfigError
from hatcli.events import Note
from hatcli.quantize.analysis.raising import Raiser, can_be_raised, exception_of, order_by_gain
from hatcli.quantize.analysis.search import Search, Trial
from hatcli.quantize.analysis.sensitivity import measure_damage
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import ActivationQuantizer
from hatcli.quantize.spec import read_spec


class Losses:
    """A model whose layers each cost so many points, unless they are raised."""

    def __init__(self, **points):
        self.points = points
        self.asked = []

    def search(self, *order):
        return Search(tuple(order or self.points), self.score)

    def score(self, raised):
        self.asked.append(raised)
        yield Note("scored")
        return float(sum(loss for name, loss in self.points.items() if name not in raised))


def found(job):
    return finished(job)[0]


def test_nothing_is_raised_where_nothing_is_lost():
    losses = Losses(a=0.3, b=0.2)
    assert found(losses.search().find(1.0)) == Trial((), 0.5)
    assert losses.asked == [frozenset()]


@pytest.mark.parametrize("needed", range(1, 12))
def test_the_shortest_beginning_is_found_in_few_trials(needed):
    names = [f"layer{number}" for number in range(40)]
    losses = Losses(**{name: 1.0 if i < needed else 0.0 for i, name in enumerate(names)})
    trial = found(losses.search().find(0.5))
    assert trial.layers == tuple(names[:needed])
    assert trial.drop == 0
    assert len(losses.asked) <= 2 * math.log2(40) + needed + 1
    assert len(set(losses.asked)) == len(losses.asked)


def test_what_the_order_has_wrong_is_taken_out_again():
    losses = Losses(harmless=0.0, bad=5.0, mild=0.4, worse=3.0)
    trial = found(losses.search("harmless", "mild", "bad", "worse").find(0.5))
    assert trial == Trial(("bad", "worse"), 0.4)


def test_a_budget_that_nothing_meets_gives_what_loses_least():
    losses = Losses(a=2.0, b=1.0, other=4.0)
    trial = found(losses.search("a", "b").find(0.5))
    assert trial == Trial(("a", "b"), 4.0)


def test_nan_is_no_success():
    losses = Losses(a=math.nan, b=1.0)
    assert math.isnan(found(losses.search("b").find(10.0)).drop)
    assert found(losses.search("a", "b").find(0.5)) == Trial(("a", "b"), 0.0)


def test_a_search_that_goes_on_scores_no_set_twice():
    losses = Losses(a=4.0, b=2.0, c=1.0, d=0.5)
    search = losses.search()
    assert found(search.find(2.0)).layers == ("a", "b")
    asked = len(losses.asked)
    assert found(search.find(1.0)).layers == ("a", "b", "c")
    assert len(losses.asked) > asked
    assert len(set(losses.asked)) == len(losses.asked) == len(search.trials)


def test_trials_come_to_an_end():
    losses = Losses(**{f"layer{number}": 1.0 for number in range(30)})
    search = losses.search()
    trial, events = finished(search.find(0.5, max_trials=12))
    assert len(search.trials) == 12
    assert trial.drop <= 0.5
    assert "search: stopped after 12 trials" in [str(event) for event in events]


SPEC = read_spec({"weight_bits": 3, "observer": {"type": "percentile", "percent": 99.9}})


@pytest.fixture(scope="module")
def case():
    """Model, calibrated graph, reference, layers by damage, and what builds raised graphs."""
    model = street()
    graph, reference = quantized(model, SPEC)
    sensitivity = found(measure_damage(graph, reference, BATCHES))
    ranges = {name: (one.low, one.high) for name, one in sensitivity.statistics.items()}
    raiser = Raiser(model, SPEC, graph, reference, ranges, BATCHES)
    return model, graph, reference, sensitivity.layers, raiser


def grids(graph):
    return {
        name: module.grid
        for name, module in graph.named_modules()
        if isinstance(module, ActivationQuantizer)
    }


def error(graph, reference):
    with torch.no_grad():
        return sum(float((graph(x) - reference(x)).double().square().sum()) for x in BATCHES)


def test_nothing_raised_is_the_calibrated_graph_with_the_biases_of_float(case):
    _, graph, reference, _, raiser = case
    same = raiser.build([])
    assert grids(same) == grids(graph)
    exact, calibrated, built = (g.state_dict() for g in (reference, graph, same))
    for name, tensor in built.items():
        assert torch.equal(tensor, (exact if name.endswith("bias") else calibrated)[name]), name


def test_a_layer_in_16_bits_gets_a_finer_grid_that_reaches_as_far_and_others_keep_theirs(case):
    _, graph, _, layers, raiser = case
    raised = raiser.build([{"layers": "down.0", "activation_bits": 16}])
    before, after = grids(graph), grids(raised)
    own = "down.0.output_quantizer"
    assert {name for name in before if before[name] != after[name]} == {own}
    assert after[own].bits == 16
    assert after[own].scale * after[own].high >= named(layers, "down.0").high * 0.999
    assert after[own].scale < before[own].scale / 50


def test_a_layer_in_float_has_the_float_weights(case):
    _, _, reference, _, raiser = case
    raised = raiser.build([{"layers": "stem.0", "float": True}])
    stem = raised.get_submodule("stem.0")
    assert stem.weight_quantizer is None
    assert torch.equal(stem.weight, reference.get_submodule("stem.0").weight)
    assert raised.get_submodule("down.0").weight_quantizer is not None


def test_a_raised_graph_is_what_its_spec_prepares_so_that_a_checkpoint_holds_it(case):
    model, _, _, layers, raiser = case
    exceptions = [exception_of(layer, "float") for layer in layers[:3]]
    raised = raiser.build(exceptions)
    spec = read_spec({"weight_bits": 3, "exceptions": exceptions})
    again = prepare(model, spec)
    again.load_state_dict(raised.state_dict())
    lowered = lower(raised).graph
    with torch.no_grad():
        expected, scores = raised(BATCHES[0]), lowered(BATCHES[0])
    assert float((scores - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_all_layers_raised_leave_little_of_the_error(case):
    _, graph, reference, layers, raiser = case
    raised = raiser.build([exception_of(layer, "float") for layer in layers])
    assert error(raised, reference) < 0.02 * error(graph, reference)


def test_the_images_can_be_raised(case):
    raised = case[4].build([{"layers": "input", "activation_bits": 16}])
    assert grids(raised)["input_quantizer"].bits == 16


def test_a_layer_that_gets_a_grid_of_its_own_is_calibrated(case):
    model = case[0]
    spec = read_spec({**vars_of(SPEC), "exceptions": [{"layers": "*", "float": True}]})
    bare = prepare(model, spec)
    finished(calibrate(bare, BATCHES, total=8))
    raiser = Raiser(model, spec, bare, bare, {}, BATCHES)
    raised = raiser.build([{"layers": "head", "float": False}])
    assert set(grids(raised)) > set(grids(bare))
    assert all(grid.scale != 1.0 for grid in grids(raised).values())


def vars_of(spec):
    return {"weight_bits": spec.weight_bits, "observer": dict(spec.observer)}


def test_an_unknown_layer_is_refused(case):
    with pytest.raises(ConfigError, match=r"no layer matches 'stem\.9'"):
        case[4].build([{"layers": "stem.9", "float": True}])


def test_exceptions_raise_what_hurts(case):
    layers = case[3]
    stem = named(layers, "stem.0")
    assert stem.weight_share > 0.9  # of 3 bits
    assert exception_of(stem, "float") == {"layers": "stem.0", "float": True}
    assert exception_of(stem, "int16") == {"layers": "stem.0", "activation_bits": 16}
    add = {"layers": "add", "activation_bits": 16}
    assert exception_of(named(layers, "add"), "float") == add


def test_16_bits_are_worth_little_where_the_weights_hurt(case):
    layers = case[3]
    by_float = [layer.name for layer in order_by_gain(layers, "float")]
    by_int16 = [layer.name for layer in order_by_gain(layers, "int16")]
    assert sorted(by_float) == sorted(by_int16) == sorted(layer.name for layer in layers)
    assert by_float == [layer.name for layer in sorted(layers, key=lambda x: x.alone_sqnr)]
    assert by_int16.index("input") < by_float.index("input")


def test_what_is_raised_already_is_no_candidate(case):
    layer = deepcopy(case[3][0])
    assert can_be_raised(layer)
    for change in ({"is_float": True}, {"bits": 16}, {"kind": "UpsampleBilinear2x"}):
        assert not can_be_raised(type(layer)(**{**vars(layer), **change}))
