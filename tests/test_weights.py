"""The vector space: a dictionary of tensors behaves as the flat vector that it stands for."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CASES
from torch import nn

import landscape_lib as ll
from landscape_lib import slices as ll_slices
from landscape_lib import weights as w
from landscape_lib.weights import Weights


def draw(seed: int, dtype: torch.dtype = torch.float64) -> Weights:
    """Return a vector of 27 entries with a matrix, a filter bank, a bias and a single number."""
    shapes = {"fc.weight": (3, 4), "conv.weight": (2, 1, 2, 2), "fc.bias": (6,), "scale": ()}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def flat(weights: Weights) -> np.ndarray:
    """Flatten by hand, as the reference."""
    return np.concatenate([tensor.numpy().ravel() for tensor in weights.values()])


def bits(weights: Weights) -> bytes:
    return flat(weights).tobytes()


def test_agrees_with_arithmetic_on_flat_vectors():
    x, y = draw(0), draw(1)
    a, b = flat(x), flat(y)
    np.testing.assert_array_equal(flat(w.add(x, y)), a + b)
    np.testing.assert_array_equal(flat(w.subtract(x, y)), a - b)
    np.testing.assert_array_equal(flat(w.scale(x, -2.5)), -2.5 * a)
    mixed = w.combine((x, y), (0.7, 0.3))
    np.testing.assert_allclose(flat(mixed), 0.7 * a + 0.3 * b, rtol=1e-14)
    combined = w.combine((x, y, x), (0.5, -1.0, 2.0))
    np.testing.assert_allclose(flat(combined), 2.5 * a - b, rtol=1e-13)
    assert w.dot(x, y) == pytest.approx(a @ b, rel=1e-14)
    assert w.norm(x) == pytest.approx(np.linalg.norm(a), rel=1e-14)
    assert w.count(x) == len(a) == 27


def test_flatten_and_back():
    x = draw(0)
    vector = w.flatten(x)
    np.testing.assert_array_equal(vector.numpy(), flat(x))
    back = w.unflatten(vector, x)
    assert bits(back) == bits(x)
    assert [t.shape for t in back.values()] == [t.shape for t in x.values()]
    # Views: this is how all parameters of a model become one vector.
    vector.zero_()
    assert w.norm(back) == 0 and w.norm(x) > 0
    with pytest.raises(ValueError, match=r"vector: expected shape \(27,\), got \(26,\)"):
        w.unflatten(vector[1:], x)


def test_nothing_that_is_given_is_changed():
    x, y = draw(0), draw(1)
    before = bits(x), bits(y)
    outcomes = [
        w.add(x, y),
        w.subtract(x, y),
        w.scale(x, 1.0),
        w.combine((x, y), (1.0, 0.0)),
        {"all": w.flatten(x)},
    ]
    w.dot(x, y), w.norm(x)
    for outcome in outcomes:
        for tensor in outcome.values():
            tensor.fill_(7.0)
    assert (bits(x), bits(y)) == before


def test_ends_of_a_mixture_are_met_bit_for_bit():  # DESIGN section 3, exactness
    x, y = draw(0), draw(1)
    y["fc.bias"][:3] = torch.tensor([0.0, -0.0, 5e-324])  # signs of zero and tiny numbers, too
    assert bits(w.combine((x, y), (1.0, 0.0))) == bits(x)
    assert bits(w.combine((x, y), (0.0, 1.0))) == bits(y)
    assert bits(w.combine((y, x, x), (1.0, 0.0, 0.0))) == bits(y)
    assert w.norm(w.combine((x, y), (0.0, 0.0))) == 0


def test_a_vector_with_coefficient_zero_contributes_nothing_not_even_nan():
    x, y = draw(0), draw(1)
    y["scale"] = torch.tensor(torch.nan, dtype=torch.float64)
    assert bits(w.combine((x, y), (1.0, 0.0))) == bits(x)
    assert bits(w.combine((y, x), (0.0, 1.0))) == bits(x)
    assert w.combine((x, y), (1.0, 1e-300))["scale"].isnan()


def test_mixtures_keep_the_dtype_of_their_first_vector():
    single, double = draw(0, torch.float32), draw(1)
    for coefficients in ((1.0, 2.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        mixed = w.combine((single, double), coefficients)
        assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}


def test_inner_products_are_accumulated_in_float64():
    # In float32 the small entries would vanish beside the large one.
    x = {"a": torch.tensor([2.0**13]), "b": torch.full((1000,), 2.0**-13)}
    assert w.dot(x, x) == 2.0**26 + 1000 * 2.0**-26
    half = {"a": torch.full((1000,), 0.1, dtype=torch.bfloat16)}
    exact = 1000 * float(half["a"][0]) ** 2
    assert w.norm(half) == pytest.approx(exact**0.5, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_a_model_are_copies_and_go_back(name):
    model, _ = CASES[name].build()
    taken = w.weights_of(model)
    assert list(taken) == [key for key, _ in model.named_parameters()]  # tied ones once, no buffers
    before = copy.deepcopy(model.state_dict())
    for tensor in taken.values():
        assert not tensor.requires_grad
        tensor.add_(1.0)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    parameters = list(model.parameters())
    w.load_weights(model, taken)
    for old, parameter, tensor in zip(parameters, model.parameters(), taken.values(), strict=True):
        assert parameter is old and parameter.requires_grad and torch.equal(parameter, tensor)
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, before[key])


def test_tied_weights_count_once():
    model, _ = CASES["tied weights"].build()
    taken = w.weights_of(model)
    assert list(taken) == ["encode.weight", "encode.bias"]
    w.load_weights(model, w.scale(taken, 2.0))
    assert model.decode.weight is model.encode.weight
    assert torch.equal(model.decode.weight, 2 * taken["encode.weight"])


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: w.add(x, y),
        lambda x, y: w.subtract(x, y),
        lambda x, y: w.dot(x, y),
        lambda x, y: w.combine((x, x, y), (1.0, 1.0, 1.0)),
    ],
)
def test_vectors_of_other_spaces_are_refused_not_broadcast(call):
    x = draw(0)
    with pytest.raises(ValueError, match=r"'fc.bias' has shape \(1,\), expected \(6,\)"):
        call(x, x | {"fc.bias": torch.ones(1, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"unexpected \['other'\]"):
        call(x, x | {"other": torch.ones(2)})
    with pytest.raises(ValueError, match=r"missing \['scale'\]"):
        call(x, {name: tensor for name, tensor in x.items() if name != "scale"})


def test_a_model_of_another_shape_is_not_loaded_by_half():
    model = nn.Linear(3, 2)
    before = w.weights_of(model)
    with pytest.raises(ValueError, match=r"weights: 'bias' has shape \(3,\), expected \(2,\)"):
        w.load_weights(model, {"weight": torch.ones(2, 3), "bias": torch.ones(3)})
    assert bits(w.weights_of(model)) == bits(before)


def test_complex_weights_are_refused():
    """CASES N12: as real numbers they would lose their imaginary part."""
    weights = {"w": torch.tensor([[1j, 0], [0, 0]])}
    with pytest.raises(ValueError, match="expected real numbers"):
        w.norm(weights)
    with pytest.raises(ValueError, match="direction.*expected real entries"):
        ll_slices.Line({"w": torch.zeros(2, 2)}, weights, [0.0])


class Twice(nn.Module):
    """A layer under two names, and a bias that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.last = nn.Linear(3, 3)
        self.last.bias = self.first.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(torch.relu(self.first(x))))


def test_a_module_with_two_names_keeps_its_own_weights():
    model, other, x = Twice().double(), Twice().double(), torch.randn(4, 3).double()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        found = ll.weights.call_with(model, ll.weights_of(other), x)
        assert torch.equal(found, other(x))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    line = ll.Line(ll.weights_of(other), ll.weights_of(model), np.linspace(-1, 1, 3))
    data = SimpleNamespace(x=x, y=torch.tensor([0, 1, 2, 0]))
    loop, vmap = (ll.evaluate(model, line, data, method=m).loss.values for m in ("loop", "vmap"))
    np.testing.assert_allclose(vmap, loop, rtol=1e-10)
