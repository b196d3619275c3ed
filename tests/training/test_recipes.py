"""Recipes of Li et al.: the networks at full width, and weights that survive being stored."""

import pytest
import torch

import landscape_lib as ll
from landscape_lib.training.recipes import Recipe, network, pack, run, trained, unpack


@pytest.mark.parametrize(
    "network, shortcuts, parameters, multiplications",
    # METHODS section D; He et al. 2016, table 6: 0.27 and 0.85 million parameters.
    [
        ("vgg9", True, 2.79e6, 191.6e6),
        ("resnet20", True, 0.27e6, 40.8e6),
        ("resnet56", True, 0.86e6, 125.7e6),
        ("resnet56", False, 0.85e6, 125.5e6),
    ],
)
def test_full_width_is_the_papers(network, shortcuts, parameters, multiplications):
    recipe = Recipe(network, shortcuts=shortcuts, width=1 if network == "vgg9" else 16)
    model = recipe.build(seed=0).eval()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.02)
    assert counter.get_total_flops() / 2 == pytest.approx(multiplications, rel=0.01)


def test_initial_weights_are_kaimings():
    model = Recipe("vgg9").build(seed=0)
    weight = model.conv3_3.weight
    assert float(weight.detach().std()) == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    assert float(model.output.weight.detach().std()) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("name", ["alexnet", "resnet", "resnetx"])
def test_unknown_network_is_named(name):
    with pytest.raises(ValueError, match=f"network: .*{name}"):
        Recipe(name).build(seed=0)


def test_packing_rounds_to_bfloat16_and_nothing_else():
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(7), "c": torch.randn(5).double()}
    back = unpack(pack(tensors), tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor.bfloat16().to(tensor.dtype))
    with pytest.raises(ValueError, match="expected 18 values, got 17"):
        unpack(pack(tensors)[1:], tensors)


@pytest.fixture
def few_digits(monkeypatch):
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    return lambda split: ll.data.load("digits", split, samples=100, device="cpu")


@pytest.mark.parametrize("largest", [10**6, 1])
def test_a_stored_network_gives_the_stored_scores(few_digits, monkeypatch, largest):
    monkeypatch.setattr(ll.results, "LARGEST_FILE", largest)
    recipe = Recipe("resnet8", width=4, epochs=2, schedule="one-cycle", learning_rate=0.05)
    where = "03/test", recipe, 0, few_digits, {"data": "digits"}
    stored, model = trained(*where), network(*where)
    assert ("state" in stored) == (largest > 1)
    for split in ("train", "test"):
        for measure, value in ll.training.score(model, few_digits(split)).items():
            assert float(stored[f"{split}_{measure}"]) == value


def test_weights_of_another_training_are_refused(few_digits, monkeypatch):
    monkeypatch.setattr(ll.results, "LARGEST_FILE", 1)
    recipe = Recipe("resnet8", width=4, epochs=1)
    where = "03/test", recipe, 0, few_digits, {"data": "digits"}
    stored = trained(*where).assign_attrs(weights="another")
    monkeypatch.setattr(ll.results, "cached", lambda *_, **__: stored)
    with pytest.raises(ValueError, match="those of the stored result another"):
        network(*where)
    monkeypatch.setenv("LANDSCAPE_SCALE", "book")
    with pytest.raises(ll.results.MissingResult, match="LANDSCAPE_RECOMPUTE=1 to train it"):
        network(*where)


def test_a_run_records_the_way_to_the_stored_weights(few_digits):
    recipe = Recipe("vgg9", width=0.1, epochs=4, batch_size=10, bfloat16=True)
    where = "03/test", recipe, 0
    data = {split: few_digits(split) for split in ("train", "test")}
    model, history = run(*where, data, {"data": "digits"})
    assert len(history.trajectory) == 5
    end = ll.weights_of(network(*where, few_digits, {"data": "digits"}))
    for name, tensor in ll.weights_of(model).items():
        assert torch.equal(history.trajectory[-1][name], tensor)
        assert torch.equal(end[name], tensor.bfloat16().to(tensor))
