"""What every registered model keeps, on the smallest input that its size_divisor allows."""

import pytest
import torch

from hatcli.models import MODELS

CLASSES = 7


def shipped_models() -> list[str]:
    """Other test files register models of their own."""
    return [n for n in MODELS.names() if MODELS.part(n).module.startswith("hatcli.")]


@pytest.fixture(scope="module", params=shipped_models())
def node(request):
    return {"type": request.param, "num_classes": CLASSES}


@pytest.fixture(scope="module")
def model(node):
    torch.manual_seed(0)
    return MODELS.build(node)


@pytest.fixture
def images(model):
    side = 2 * getattr(model, "size_divisor", 32)
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def as_tuple(scores):
    return scores if isinstance(scores, tuple) else (scores,)


def test_scores_have_one_channel_a_class_and_shrink_from_head_to_head(model, images):
    with torch.no_grad():
        heads = as_tuple(model.eval()(images))
    for scores in heads:
        assert scores.shape[:2] == (2, CLASSES)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
    sizes = [tuple(scores.shape[2:]) for scores in heads]
    assert sizes == sorted(set(sizes), reverse=True)


def test_every_parameter_gets_a_finite_gradient(model, images):
    model.train()
    sum(scores.square().mean() for scores in as_tuple(model(images))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.zero_grad()


def test_the_trace_computes_the_same(model, images):
    model.eval()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for mine, its in zip(as_tuple(model(images)), as_tuple(traced(images)), strict=True):
            assert torch.equal(mine, its)


def test_state_loads_into_a_second_model_with_the_same_result(node, model, images):
    twin = MODELS.build(node).eval()
    twin.load_state_dict(model.eval().state_dict())
    with torch.no_grad():
        for mine, its in zip(as_tuple(model(images)), as_tuple(twin(images)), strict=True):
            assert torch.equal(mine, its)
