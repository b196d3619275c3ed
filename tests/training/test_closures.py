"""PAL and Entropy-SGD driven by ``train``: closures without backward, fresh batches, resumption."""

import copy

import pytest
import torch
import torch.nn.functional as F

import landscape_lib as ll

DIGITS = ll.data.load("digits", "train", samples=200, device="cpu", dtype=torch.float64)


def model():
    return ll.models.mlp(64, (16,), 10, seed=0).double()


OPTIMIZERS = {
    "PAL": lambda m: ll.PAL(m.parameters(), mu=0.1),
    "Entropy-SGD": lambda m: ll.EntropySGD(m.parameters(), inner_steps=3, lr=1.0, inner_lr=0.2),
}


def run(name, **options):
    net = model()
    history = ll.train(
        net, DIGITS, OPTIMIZERS[name](net), epochs=4, batch_size=32, progress=False, **options
    )
    return net, history


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_lowers_the_loss_and_resumes_to_the_same_bits(name, tmp_path, monkeypatch):
    net, history = run(name)
    assert history.epochs[-1]["train_loss"] < 0.8 * history.batch_losses[0]
    path = tmp_path / "run.pt"
    save, saved = ll.training.checkpoint.Run.save, []

    def save_then_stop(self, where):
        save(self, where)
        saved.append(where)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ll.training.checkpoint.Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run(name, checkpoint=path)
    again, resumed = run(name, checkpoint=path)
    assert resumed.batch_losses == history.batch_losses
    for old, new in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_step_of_entropy_sgd_takes_its_batches_and_the_last_one_starts_another_pass():
    seen = []

    def loss(output, target):
        seen.append(len(target))
        return F.cross_entropy(output, target)

    net = model()
    optimizer = OPTIMIZERS["Entropy-SGD"](net)
    history = ll.train(net, DIGITS, optimizer, epochs=2, batch_size=32, loss=loss, progress=False)
    # 200 samples are 7 batches, the last one of 8: three steps an epoch, and two batches more.
    assert len(history.batch_losses) == 6 and seen == 2 * ([32] * 6 + [8, 32, 32])
    assert optimizer.param_groups[0]["gradients"] == 18


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_is_part_of_the_loss_that_the_optimiser_sees(decay):
    net = model()
    before = copy.deepcopy(net)
    history = ll.train(
        net,
        DIGITS,
        OPTIMIZERS["PAL"](net),
        epochs=1,
        batch_size=200,
        weight_decay=decay,
        progress=False,
    )
    with torch.no_grad():
        squares = sum(float(p.square().sum()) for p in before.parameters())
        expected = float(F.cross_entropy(before(DIGITS.x), DIGITS.y)) + decay / 2 * squares
    assert history.batch_losses[0] == pytest.approx(expected, rel=1e-12)
    # With it SGD goes the way that its own decay goes.
    one, other = model(), model()
    options = {"epochs": 1, "batch_size": 50, "progress": False}
    own = torch.optim.SGD(one.parameters(), lr=0.1, weight_decay=decay)
    ll.train(one, DIGITS, own, **options)
    ll.train(
        other, DIGITS, torch.optim.SGD(other.parameters(), lr=0.1), weight_decay=decay, **options
    )
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "0"])
def test_weight_decay_is_checked(value):
    net = model()
    with pytest.raises(ValueError, match="weight_decay: expected a finite number"):
        ll.train(net, DIGITS, OPTIMIZERS["PAL"](net), epochs=1, weight_decay=value)
