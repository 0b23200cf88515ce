import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hatcli.quantize.fake_quantize import (
    CappedScale,
    FakeQuantize,
    LearnedFakeQuantize,
    fake_quantize_weight,
)
from hatcli.quantize.grid import Grid, grid_of_range
from hatcli.quantize.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    largest_relu6_scale,
)


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizing(activation=None, bits=8, grid=None, learned=False):
    quantizer = ActivationQuantizer(activation, bits, {"type": "min_max"})
    quantizer.set_grid(grid or grid_of_range(-1.5, 2.0, bits))
    if learned:
        quantizer.learn_scale()
    quantizer.mode = "quantize"
    return quantizer


def rounded(x, scale, low, high):
    """Round with a straight-through gradient, of plain tensor operations."""
    steps = (x / scale).clamp(low, high)
    return (steps + (steps.round() - steps).detach()) * scale


def assert_nearly_same_codes(y, expected, scale, share=1e-3):
    """Ties may fall to either side, since torch multiplies where others divide."""
    differs = ((y - expected) / scale).abs() > 1e-3
    assert differs.float().mean() < share
    assert ((y - expected) / scale).abs().max() < 1.001


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("low", "high"), [(-1.5, 2.0), (0.0, 3.0), (-2.0, 0.0)])
def test_values_are_those_of_torchs_fake_quantization(low, high, bits):
    grid = grid_of_range(low, high, bits)
    x = random(2, 8, 40, 40, scale=2.0)
    y = FakeQuantize.apply(x, grid.scale, grid.low, grid.high)
    expected = torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, 0, 2**bits - 1)
    assert_nearly_same_codes(y, expected, grid.scale, share=1e-3 if bits == 8 else 0.05)
    assert y.unique().numel() > 100
    steps = (y.double() / grid.scale) + grid.zero_point
    assert (steps - steps.round()).abs().max() < (1e-4 if bits == 8 else 1e-2)


def test_halves_go_to_the_even_code_and_the_ends_are_reached():
    x = torch.tensor([-9.0, -0.75, -0.25, 0.25, 0.75, 1.25, 9.0])
    y = FakeQuantize.apply(x, 0.5, -2, 3)
    assert y.tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.5]


def test_the_gradient_is_that_of_torch_but_half_a_step_beyond_the_ends():
    grid = grid_of_range(-1.5, 2.0)
    x, grad = random(20_000, scale=2.0).requires_grad_(), random(20_000, seed=1)
    FakeQuantize.apply(x, grid.scale, grid.low, grid.high).backward(grad)
    theirs = x.detach().clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(theirs, grid.scale, grid.zero_point, 0, 255).backward(
        grad
    )
    steps = x.detach() / grid.scale
    beyond = ((steps > grid.high) & (steps <= grid.high + 0.5)) | (
        (steps < grid.low) & (steps >= grid.low - 0.5)
    )
    assert 0 < beyond.sum() < 100
    assert torch.equal(x.grad[~beyond], theirs.grad[~beyond])
    assert not x.grad[beyond].any()
    assert 1000 < (x.grad == 0).sum() < 19_000


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_relu_in_the_quantizer_is_a_relu_before_it(activation):
    function = {"relu": F.relu, "relu6": F.relu6}[activation]
    grid = grid_of_range(0.0, 5.0)
    quantizer = quantizing(activation, grid=grid)
    x, grad = random(4000, scale=4.0).requires_grad_(), random(4000, seed=1)
    quantizer(x).backward(grad)
    theirs = x.detach().clone().requires_grad_()
    y = torch.fake_quantize_per_tensor_affine(function(theirs), grid.scale, 0, 0, 255)
    y.backward(grad)
    assert_nearly_same_codes(quantizer(x).detach(), y.detach(), grid.scale, share=2e-3)
    clear = (x.detach() < 5.0) | (x.detach() > 5.0 + grid.scale / 2)
    assert torch.equal(x.grad[clear], theirs.grad[clear])
    quantizer.mode = "float"
    assert torch.equal(quantizer(x), function(x))


def test_observing_shows_what_comes_after_the_relu():
    class Observer:
        def observe(self, x):
            self.seen = x

    quantizer = ActivationQuantizer("relu", 8, {"type": "min_max"})
    quantizer.mode, quantizer.observer = "observe", Observer()
    y = quantizer(torch.tensor([-1.0, 2.0]).requires_grad_())
    assert y.tolist() == quantizer.observer.seen.tolist() == [0.0, 2.0]
    assert not quantizer.observer.seen.requires_grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_the_gradients_of_a_learned_scale_are_those_of_lsq(activation, memory_format):
    grid = grid_of_range(0.0 if activation else -1.5, 2.0)
    quantizer = quantizing(activation, grid=grid, learned=True)
    x = random(2, 4, 9, 7, scale=2.0).to(memory_format=memory_format).requires_grad_()
    grad = random(2, 4, 9, 7, seed=1).to(memory_format=memory_format)
    y = quantizer(x)
    y.backward(grad)
    theirs = x.detach().clone().requires_grad_()
    scale = torch.tensor(grid.scale, requires_grad=True)
    before = F.relu(theirs) if activation else theirs
    expected = rounded(before, scale, grid.low, grid.high)
    expected.backward(grad)
    factor = (x.numel() * max(grid.high, -grid.low)) ** -0.5
    assert_nearly_same_codes(y.detach(), expected.detach(), grid.scale, share=5e-3)
    torch.testing.assert_close(x.grad, theirs.grad)
    torch.testing.assert_close(quantizer.scale.grad, scale.grad * factor, rtol=1e-3, atol=1e-6)
    assert quantizer.scale.grad.abs() > 0


def test_a_learned_scale_follows_its_gradient_to_a_smaller_error():
    x = random(4096)
    quantizer = quantizing(grid=Grid(0.2, 128), learned=True)
    optimiser = torch.optim.Adam(quantizer.parameters(), lr=2e-3)
    errors = []
    for _ in range(100):
        optimiser.zero_grad()
        error = (quantizer(x) - x).square().mean()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 10


def test_a_negative_scale_counts_as_its_magnitude():
    quantizer = quantizing(grid=Grid(0.1, 128), learned=True)
    x, grad = random(100), random(100, seed=1)
    (quantizer(x) * grad).sum().backward()
    expected, gradient = quantizer(x).detach(), quantizer.scale.grad.clone()
    quantizer.scale.data.neg_()
    quantizer.scale.grad = None
    (quantizer(x) * grad).sum().backward()
    assert torch.equal(quantizer(x), expected)
    assert torch.equal(quantizer.scale.grad, -gradient)
    assert quantizer.grid == Grid(pytest.approx(0.1), 128)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_relu6_never_goes_beyond_6_even_when_learned(bits):
    top = largest_relu6_scale(bits) * (2**bits - 1)
    assert 6.0 - 1e-5 < top <= 6.0
    quantizer = quantizing("relu6", bits, Grid(largest_relu6_scale(bits), 0, bits), learned=True)
    x = torch.full((10,), 100.0)
    with torch.no_grad():
        quantizer.scale.mul_(1.5)
    assert quantizer(x).max() <= 6.0
    assert quantizer.grid.scale * quantizer.grid.high <= 6.0
    quantizer(x).sum().backward()  # a smaller scale would make the sum smaller: that may pass
    assert quantizer.scale.grad > 0
    quantizer.scale.grad = None
    (-quantizer(x)).sum().backward()
    assert quantizer.scale.grad == 0  # it would only go further away from what counts


def test_a_capped_scale_passes_gradients_inside_its_bounds():
    scale = torch.tensor([0.5, -0.5, 3.0], requires_grad=True)
    capped = CappedScale.apply(scale, 1e-12, 2.0)
    assert capped.tolist() == [0.5, 0.5, 2.0]
    capped.sum().backward()
    assert scale.grad.tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (6, 20)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_and_their_gradients_are_those_of_torch(bits, shape):
    highest = 2 ** (bits - 1) - 1
    weight, grad = random(*shape).requires_grad_(), random(*shape, seed=1)
    scale = weight.detach().flatten(1).abs().amax(1) * 0.5 / highest
    y = fake_quantize_weight(weight, scale, highest)
    y.backward(grad)
    theirs = weight.detach().clone().requires_grad_()
    expected = torch.fake_quantize_per_channel_affine(
        theirs, scale, torch.zeros(6, dtype=torch.int32), 0, -highest, highest
    )
    expected.backward(grad)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(weight.grad, theirs.grad)
    assert 0 < (weight.grad == 0).sum() < weight.numel()


def test_the_largest_weight_of_a_channel_can_move():
    weight = random(64, 9).requires_grad_()
    scale = weight.detach().abs().amax(1) / 127
    fake_quantize_weight(weight, scale, 127).sum().backward()
    assert torch.equal(weight.grad, torch.ones(64, 9))


def test_the_gradients_of_learned_weight_scales_are_those_of_lsq():
    weight, grad = random(6, 3, 3, 3).requires_grad_(), random(6, 3, 3, 3, seed=1)
    quantizer = WeightQuantizer(6, 4, {"type": "min_max"})
    quantizer.scale.copy_(weight.detach().flatten(1).abs().amax(1) * 0.7 / 7)
    quantizer.learn_scale()
    quantizer.mode = "quantize"
    quantizer(weight).backward(grad)
    theirs = weight.detach().clone().requires_grad_()
    scale = quantizer.scale.detach().clone().reshape(6, 1, 1, 1).requires_grad_()
    rounded(theirs, scale, -7, 7).backward(grad)
    torch.testing.assert_close(weight.grad, theirs.grad)
    torch.testing.assert_close(quantizer.scale.grad, scale.grad.flatten() * (27 * 7) ** -0.5)


def test_codes_times_scales_are_the_quantized_weights():
    weight = random(5, 4, 3, 3)
    quantizer = WeightQuantizer(5, 8, {"type": "min_max"})
    quantizer.scale.copy_(weight.flatten(1).abs().amax(1) / 100)
    quantizer.mode = "quantize"
    codes = quantizer.codes(weight)
    assert codes.dtype == torch.int8
    assert (codes.min(), codes.max()) == (-100, 100)
    assert torch.equal(quantizer(weight), codes * quantizer.scale.reshape(5, 1, 1, 1))


@pytest.mark.parametrize("learned", [False, True])
def test_a_quantizer_survives_saving_copying_and_pickling(learned):
    x, quantizer = random(1000), quantizing(grid=grid_of_range(-0.3, 2.0), learned=learned)
    expected = quantizer(x)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    other = quantizing(learned=not learned)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    pickled = pickle.loads(pickle.dumps(quantizer))  # noqa: S301 - just written
    for again in (other, copy.deepcopy(quantizer), pickled):
        assert torch.equal(again(x), expected)
        assert again.grid == quantizer.grid
    assert isinstance(quantizer.scale, nn.Parameter) == learned


def test_a_learned_scale_gives_what_a_fixed_one_does():
    x, grid = random(5000), grid_of_range(-0.3, 2.0)
    fixed, learned = quantizing(grid=grid), quantizing(grid=grid, learned=True)
    assert torch.equal(fixed(x), learned(x))
    assert torch.equal(
        FakeQuantize.apply(x, grid.scale, grid.low, grid.high),
        LearnedFakeQuantize.apply(x, torch.tensor(grid.scale), grid.low, grid.high),
    )


def test_a_scale_of_zero_is_lifted_and_gives_no_nan():
    quantizer = ActivationQuantizer(None, 8, {"type": "min_max"})
    quantizer.load_state_dict({"scale": torch.tensor(0.0), "zero_point": torch.tensor(3)})
    quantizer.mode = "quantize"
    assert quantizer.grid.scale > 0
    assert torch.isfinite(quantizer(torch.randn(64))).all()
    weights = WeightQuantizer(4, 8, {"type": "min_max"})
    weights.load_state_dict({"scale": torch.zeros(4)})
    weights.mode = "quantize"
    assert torch.isfinite(weights(torch.randn(4, 3, 1, 1))).all()
    assert weights.codes(torch.randn(4, 3, 1, 1)).abs().max() <= 127
