"""Training gives the same bits again, also when it was interrupted; and scores agree by hand."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from torch import Tensor, nn
from torch.optim import lr_scheduler

import landscape_lib as ll
from landscape_lib.evaluation.batches import move
from landscape_lib.fingerprint import digest
from landscape_lib.runtime import generator
from landscape_lib.training.checkpoint import CheckpointMismatch
from landscape_lib.training.score import score
from landscape_lib.training.train import crop_and_flip

EPOCHS, STEPS = 5, 4  # 26 samples in batches of 8: the last batch is short


def network() -> nn.Sequential:
    """Batch norm and dropout: buffers and random numbers, both of which must come back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(75, 3),
        ).double()


def images(count: int = 26, seed: int = 1) -> SimpleNamespace:
    x = torch.randn(count, 1, 5, 5, generator=generator(seed), dtype=torch.float64)
    return SimpleNamespace(x=x, y=torch.arange(count) % 3)


def small_shift(x: Tensor, source: torch.Generator) -> Tensor:
    return crop_and_flip(x, source, pad=1)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)


def drops(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, [2, 4])


@dataclass
class Setup:
    """A run that can be built again from nothing, as a new process would."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    schedule: Callable[[Any], lr_scheduler.LRScheduler] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def train(self, **more: Any) -> tuple[nn.Module, torch.optim.Optimizer, ll.History]:
        model = network()
        optimizer = self.optimizer(model)
        arguments: dict[str, Any] = {
            "epochs": EPOCHS,
            "batch_size": 8,
            "augment": small_shift,
            "test": images(10, seed=2),
            "record_every": 3,
            "schedule": self.schedule and self.schedule(optimizer),
        }
        arguments |= self.arguments | more
        data = arguments.pop("data", None) or images()
        return model, optimizer, ll.train(model, data, optimizer, **arguments)


SETUPS = {
    "momentum": Setup(),
    "momentum, schedule by step": Setup(schedule=cosine),
    "momentum, schedule by epoch": Setup(schedule=drops, arguments={"schedule_every": "epoch"}),
    "adam, schedule by step": Setup(optimizer=adam, schedule=cosine),
    "PAL, schedule by step": Setup(lambda model: ll.PAL(model.parameters()), cosine),
    "Entropy-SGD, one inner step": Setup(
        lambda model: ll.EntropySGD(model.parameters(), inner_steps=1, noise=0.1), cosine
    ),
    "numbers of numpy's": Setup(
        lambda model: torch.optim.SGD(model.parameters(), lr=np.geomspace(0.01, 0.1, 3)[1]),
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, np.float64(0.9)),
    ),
}


def assert_same_run(first: Any, second: Any) -> None:
    """Weights, buffers, the optimiser's memory and the history: the same bits."""
    (model, optimizer, history), (other, other_optimizer, other_history) = first, second
    for (key, tensor), same in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, same), key
    memory, other_memory = optimizer.state_dict(), other_optimizer.state_dict()
    assert memory["param_groups"] == other_memory["param_groups"]
    assert memory["state"].keys() == other_memory["state"].keys()
    for number, entries in memory["state"].items():
        for name, value in entries.items():
            same = other_memory["state"][number][name]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(same)), name
    assert history.batch_losses == other_history.batch_losses
    assert history.epochs == other_history.epochs
    assert history.trajectory_steps == other_history.trajectory_steps
    for point, same in zip(history.trajectory, other_history.trajectory, strict=True):
        assert all(torch.equal(point[name], same[name]) for name in point)


# --- determinism and the caller -----------------------------------------------------------------


@pytest.mark.parametrize("name", SETUPS)
def test_equal_seeds_give_equal_bits_and_other_seeds_others(name):  # DESIGN section 3
    first = SETUPS[name].train()
    torch.rand(3)  # the global random state does not matter
    assert_same_run(first, SETUPS[name].train())
    other = SETUPS[name].train(seed=1)
    assert first[2].batch_losses[0] != other[2].batch_losses[0]


def test_agrees_with_a_loop_written_out():
    # The ten lines that everyone writes, for a network that draws no random numbers.
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double()

    data, model = images(), build()
    optimizer = sgd(model)
    schedule = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    history = ll.train(
        model, data, optimizer, epochs=2, batch_size=8, schedule=schedule, schedule_every="epoch"
    )

    reference, order = build(), generator(0)
    by_hand, losses = sgd(reference), []
    for epoch in range(2):
        by_hand.param_groups[0]["lr"] = 0.05 * 0.5**epoch
        for chosen in torch.randperm(26, generator=order).split(8):
            by_hand.zero_grad()
            loss = F.cross_entropy(reference(data.x[chosen]), data.y[chosen])
            loss.backward()
            by_hand.step()
            losses.append(loss.item())
    assert history.batch_losses == losses
    assert [row["learning_rate"] for row in history.epochs] == [0.05, 0.025]
    assert history.epochs[1]["train_loss"] == pytest.approx(np.mean(losses[4:]), rel=1e-15)
    for parameter, same in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(parameter, same)


def test_the_global_random_state_and_every_mode_come_back():
    model = network()
    model.eval()
    model[3].train()  # a mode of its own, deep inside
    state = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    ll.train(model, images(), sgd(model), epochs=1, augment=small_shift, test=images(10))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_the_random_state_and_modes_come_back_after_an_error():
    model = network().eval()
    state = torch.get_rng_state()

    def interrupted(x: Tensor, source: torch.Generator) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ll.train(model, images(), sgd(model), epochs=1, augment=interrupted)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())


def test_dropout_and_batch_norm_are_active_while_training():
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return x

    model = nn.Sequential(network(), Watch()).eval()
    before = model[0][1].running_mean.clone()
    ll.train(model, images(), sgd(model), epochs=1, batch_size=13, test=images(10))
    assert seen.count(True) == 2 and not seen[-1]  # two steps, and the test at the end
    assert not torch.equal(model[0][1].running_mean, before)


def test_a_model_that_flattens_with_view_can_be_trained_scored_and_evaluated():
    # The library may lay images out channels-last for speed; .view() does not run on that.
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.output = nn.Linear(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(torch.relu(self.conv(x)).view(len(x), -1))

    model, data = Viewing().double(), images()
    data.x = torch.cat([data.x, data.x.square()], dim=1)  # with one channel both layouts are one
    ll.train(model, data, sgd(model), epochs=1)
    own = F.cross_entropy(model(data.x), data.y).item()
    assert score(model, data)["loss"] == pytest.approx(own, rel=1e-12)
    center = ll.weights_of(model)
    line = ll.Line(center, ll.random_direction(center, generator=generator(0)), [0.0, 1.0])
    for method in ("loop", "vmap"):
        got = ll.evaluate(model, line, data, method=method)
        assert float(got.loss[0]) == pytest.approx(own, rel=1e-12)


# --- interruption -------------------------------------------------------------------------------


def stopping(step: int) -> Callable[..., Any]:
    """Return a stand-in for ``move``, which every batch goes through, that raises at ``step``."""
    calls = 0

    def move_or_stop(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return move(*arguments, **named)

    return move_or_stop


def interrupt(setup: Setup, path: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run and stop it before its step number ``step``, counted from 1."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["landscape_lib.training.train"], "move", stopping(step))
        with pytest.raises(KeyboardInterrupt):
            setup.train(checkpoint=path)


@pytest.mark.parametrize("step", [1, 2 * STEPS + 1, 2 * STEPS + 3, 3 * STEPS])
@pytest.mark.parametrize("name", SETUPS)
def test_an_interrupted_run_resumes_to_the_same_bits(name, step, tmp_path, monkeypatch):
    whole = SETUPS[name].train()
    path = tmp_path / "run.pt"
    interrupt(SETUPS[name], path, step, monkeypatch)
    assert path.exists() == (step > STEPS)
    resumed = SETUPS[name].train(checkpoint=path)
    assert_same_run(resumed, whole)
    # Once more: a finished run is loaded, not trained.
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["landscape_lib.training.train"], "move", stopping(1))
        assert_same_run(SETUPS[name].train(checkpoint=path), whole)


def test_several_interruptions_in_one_run(tmp_path, monkeypatch):
    setup = SETUPS["adam, schedule by step"]
    path = tmp_path / "run.pt"
    for step in (STEPS + 2, STEPS + 1, 1, 2 * STEPS):
        interrupt(setup, path, step, monkeypatch)
    assert_same_run(setup.train(checkpoint=path), setup.train())


def test_the_order_of_samples_goes_on_where_it_stopped(tmp_path, monkeypatch):
    # The negative control: resuming repeats no epoch's order of samples.
    _, _, history = SETUPS["momentum"].train()
    firsts = history.batch_losses[::STEPS]
    assert len(set(firsts)) == EPOCHS
    interrupt(SETUPS["momentum"], tmp_path / "run.pt", 2 * STEPS + 1, monkeypatch)
    _, _, resumed = SETUPS["momentum"].train(checkpoint=tmp_path / "run.pt")
    assert resumed.batch_losses[::STEPS] == firsts


def test_optimisers_that_evaluate_the_closure_several_times(tmp_path, monkeypatch):
    setup = Setup(
        optimizer=lambda model: torch.optim.LBFGS(
            model.parameters(), lr=0.5, max_iter=4, history_size=3
        ),
        arguments={"batch_size": 26, "epochs": 6},
    )
    _, _, whole = setup.train()
    # One step with four iterations; the loss kept is that before the step.
    model = network().train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = generator(0)
        order = torch.randperm(26, generator=source)
        shifted = small_shift(images().x[order], source)
        # Dropout draws its mask in the order in which the images are stored.
        stored = torch.empty_like(shifted, memory_format=torch.channels_last).copy_(shifted)
        first = F.cross_entropy(model(stored), images().y[order])
    assert whole.batch_losses[0] == pytest.approx(first.item(), rel=1e-12)
    assert len(whole.batch_losses) == 6
    interrupt(setup, tmp_path / "run.pt", 4, monkeypatch)
    _, _, resumed = setup.train(checkpoint=tmp_path / "run.pt")
    assert resumed.batch_losses == whole.batch_losses


# --- checkpoints of other runs ------------------------------------------------------------------


def other_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.1)


OTHERS = {
    "seed": (Setup(), {"seed": 1}),
    "epochs": (Setup(), {"epochs": EPOCHS + 1}),
    "batch_size": (Setup(), {"batch_size": 13}),
    "record_every": (Setup(), {"record_every": None}),
    "loss": (Setup(), {"loss": other_loss}),
    "augment": (Setup(), {"augment": None}),
    "data": (Setup(), {"data": images(seed=5)}),
    "test": (Setup(), {"test": images(10, seed=5)}),
    "optimizer": (Setup(optimizer=adam), {}),
    "schedule": (Setup(schedule=cosine), {}),
    "schedule_every": (Setup(), {"schedule_every": "epoch"}),
}


@pytest.mark.parametrize("part", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_and_untouched(part, tmp_path):
    path = tmp_path / "run.pt"
    Setup().train(checkpoint=path, epochs=1 if part != "epochs" else EPOCHS)
    before = path.read_bytes()
    setup, arguments = OTHERS[part]
    arguments = {"epochs": 1} | arguments
    with pytest.raises(CheckpointMismatch, match=rf"another run: .*\b{part}\b.* untouched"):
        setup.train(checkpoint=path, **arguments)
    assert path.read_bytes() == before


def test_the_numbers_of_a_schedule_and_an_optimizer_count(tmp_path):
    def run(gamma: float, lr: float) -> None:
        def built(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
            return lr_scheduler.StepLR(optimizer, 3, gamma=gamma)

        setup = Setup(lambda model: torch.optim.SGD(model.parameters(), lr=lr), built)
        setup.train(checkpoint=tmp_path / "run.pt", epochs=1)

    run(0.1, 0.5)
    with pytest.raises(CheckpointMismatch, match="another run: schedule differ"):
        run(0.2, 0.5)
    with pytest.raises(CheckpointMismatch, match="another run: optimizer, schedule differ"):
        run(0.1, 0.25)
    run(0.1, 0.5)


def test_two_functions_of_one_name_are_told_apart(tmp_path):
    def smoothed(amount: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda output, target: F.cross_entropy(output, target, label_smoothing=amount)

    Setup().train(checkpoint=tmp_path / "run.pt", epochs=1, loss=smoothed(0.1))
    with pytest.raises(CheckpointMismatch, match="another run: loss differ"):
        Setup().train(checkpoint=tmp_path / "run.pt", epochs=1, loss=smoothed(0.2))
    with pytest.raises(CheckpointMismatch, match="another run: loss differ"):
        Setup().train(
            checkpoint=tmp_path / "run.pt", epochs=1, loss=lambda o, t: F.cross_entropy(o, t) * 2
        )
    Setup().train(checkpoint=tmp_path / "run.pt", epochs=1, loss=smoothed(0.1))


def test_digests_do_not_run_values_together():
    assert digest([12, 3]) != digest([1, 23])
    assert digest({"a": 1, "b": 2}) != digest({"a": 1, "b": 3})
    assert digest([[1], [2]]) != digest([[1, 2]]) != digest([1, 2])
    double = torch.arange(4.0).double()
    assert digest(double) != digest(double.float()) != digest(double.view(2, 2).float())
    assert digest(double.view(2, 2).T) == digest(double.view(2, 2).T.contiguous())
    assert digest(-0.0 * double) != digest(0.0 * double)  # every bit counts


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b"", lambda b: b"text" * 99])
def test_a_corrupt_checkpoint_is_refused_and_untouched(damage, tmp_path):
    path = tmp_path / "run.pt"
    Setup().train(checkpoint=path, epochs=1)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(CheckpointMismatch, match=r"run\.pt cannot be read .* untouched"):
        Setup().train(checkpoint=path, epochs=1)
    assert path.read_bytes() == damaged


# --- what is recorded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, range(9)), (3, [0, 3, 6, 8]), (4, [0, 4, 8]), (100, [0, 8])],
)
def test_the_trajectory_includes_the_first_and_the_last_weights(every, expected):
    model = network()
    start = ll.weights_of(model)
    history = ll.train(
        model, images(), sgd(model), epochs=2, batch_size=8, record_every=every, progress=False
    )
    assert history.trajectory_steps == list(expected)
    for point, weights in ((0, start), (-1, ll.weights_of(model))):
        assert all(torch.equal(history.trajectory[point][name], weights[name]) for name in weights)
    model[5].weight.data.zero_()  # what was recorded are copies
    assert history.trajectory[-1]["5.weight"].any()


def test_recording_changes_nothing():
    with_it = Setup().train(record_every=1)
    without = Setup().train(record_every=None, test=None)
    assert with_it[2].batch_losses == without[2].batch_losses
    assert without[2].trajectory == [] and "test_loss" not in without[2].epochs[0]


def test_curves_hold_every_epoch_and_the_scores_of_the_model_as_it_was():
    model, _, history = Setup(schedule=cosine).train()
    curves = history.curves()
    assert curves.epoch.values.tolist() == [1, 2, 3, 4, 5]
    assert set(curves) == {"learning_rate", "train_loss", "test_loss", "test_accuracy"}
    means = np.array(history.batch_losses).reshape(EPOCHS, STEPS).mean(axis=1)
    np.testing.assert_allclose(curves.train_loss, means, rtol=1e-15)
    last = score(model, images(10, seed=2))
    assert float(curves.test_loss[-1]) == last["loss"]
    assert float(curves.test_accuracy[-1]) == last["accuracy"]
    assert float(curves.learning_rate[0]) == 0.05 > float(curves.learning_rate[-1])


@pytest.mark.parametrize("batch_size", [5, 23, 512])
@pytest.mark.parametrize("name", CASES)
def test_scores_agree_with_brute_force(name, batch_size):
    case = CASES[name]
    model, data = case.build()
    got = score(model, data, loss=case.loss, batch_size=batch_size)
    still = copy.deepcopy(model).eval()
    with torch.no_grad():
        outputs = [still(data.x[i : i + 1]) for i in range(23)]
    losses = [case.loss(o, data.y[i : i + 1]).item() for i, o in enumerate(outputs)]
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    if case.classes is not None:
        right = [int(o.argmax()) == int(data.y[i]) for i, o in enumerate(outputs)]
        assert got["accuracy"] == pytest.approx(np.mean(right), rel=1e-12)


def test_scoring_leaves_the_model_and_the_random_state_alone():
    model = network().train()
    model[1].eval()  # a frozen layer stays frozen
    F.cross_entropy(model(images().x), images().y).backward()
    before = copy.deepcopy(model)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images().x, images().y), batch_size=7, shuffle=True
    )
    assert score(model, loader)["loss"] == pytest.approx(score(model, images())["loss"], rel=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
    for old, new in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


# --- augmentation -------------------------------------------------------------------------------


def slow_crop_and_flip(x: Tensor, source: torch.Generator, pad: int) -> Tensor:
    """Image by image and pixel by pixel, with the same random numbers."""
    n, channels, height, width = x.shape
    shifts = torch.randint(0, 2 * pad + 1, (2, n), generator=source).tolist()
    flips = (torch.rand(n, generator=source) < 0.5).tolist()
    result = torch.zeros_like(x)
    for i in range(n):
        picture = x[i].flip(-1) if flips[i] else x[i]
        right = shifts[1][i] - pad  # of the window, in the picture as it was before the flip
        for row in range(height):
            for column in range(width):
                from_row = row + shifts[0][i] - pad
                from_column = column - right if flips[i] else column + right
                if 0 <= from_row < height and 0 <= from_column < width:
                    result[i, :, row, column] = picture[:, from_row, from_column]
    return result


@pytest.mark.parametrize("shape", [(16, 3, 6, 6), (9, 1, 4, 7), (5, 2, 7, 3)])
@pytest.mark.parametrize("pad", [0, 1, 2, 4])
def test_crop_and_flip_agrees_with_a_loop_over_pixels(shape, pad):
    x = torch.randn(shape, generator=generator(0), dtype=torch.float64)
    before = x.clone()
    got = crop_and_flip(x, generator(1), pad)
    assert torch.equal(got, slow_crop_and_flip(x, generator(1), pad))
    assert torch.equal(x, before) and got.dtype == x.dtype


def test_without_padding_an_image_stays_or_is_mirrored():
    x = torch.randn(400, 2, 3, 5, generator=generator(0), dtype=torch.float64)
    got = crop_and_flip(x, generator(1), pad=0)
    same = (got == x).flatten(1).all(1)
    mirrored = (got == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 200) < 5 * 10  # five standard deviations of 400 coins


def test_every_shift_and_both_mirrorings_occur():
    # One bright pixel in the middle shows where each picture went.
    x = torch.zeros(2000, 1, 9, 9, dtype=torch.float64)
    x[:, 0, 4, 4] = 1.0
    x[:, 0, 4, 5] = 0.5
    got = crop_and_flip(x, generator(0), pad=2)
    places = (got == 1.0).nonzero()
    assert len(places) == 2000  # within the padding nothing bright leaves the picture
    shifts = {(int(row), int(column)) for _, _, row, column in places}
    assert shifts == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    number, _, row, column = places.T
    right = got[number, 0, row, (column + 1)] == 0.5
    left = got[number, 0, row, (column - 1)] == 0.5
    assert (right ^ left).all() and 800 < int(right.sum()) < 1200


def test_augmentation_draws_from_its_generator_only():
    state = torch.get_rng_state()
    x = images().x
    first, same, other = (crop_and_flip(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same) and not torch.equal(first, other)


# --- where the trajectory is kept ---------------------------------------------------------------


@pytest.mark.parametrize("first", [None, "cpu", "folder"])
@pytest.mark.parametrize("then", [None, "cpu", "folder"])
def test_a_trajectory_kept_anywhere_is_the_same_also_resumed_elsewhere(
    first, then, tmp_path, monkeypatch
):
    folder, path = tmp_path / "points", tmp_path / "run.pt"
    to = {None: None, "cpu": "cpu", "folder": folder}
    whole = Setup().train()
    before = Setup(arguments={"record_to": to[first]})
    interrupt(before, path, 3 * STEPS + 2, monkeypatch)
    assert_same_run(Setup().train(record_to=to[then], checkpoint=path), whole)
    files = sorted(folder.glob("*.pt"))
    if then == "folder":
        assert len(files) == len(whole[2].trajectory)
        # A checkpoint names the files and does not repeat them.
        inside = torch.load(path, weights_only=True)["history"]["trajectory"]
        assert [point[0] for point in inside] == [str(file) for file in files]


def test_a_point_on_disk_that_is_not_as_it_was_is_refused(tmp_path):
    folder, path = tmp_path / "points", tmp_path / "run.pt"
    Setup().train(record_to=folder, checkpoint=path)
    point = sorted(folder.glob("*.pt"))[1]
    content = bytearray(point.read_bytes())
    content[len(content) // 2] ^= 1
    point.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=f"cannot be read .*{point.name} is not as it was"):
        Setup().train(record_to=folder, checkpoint=path)


def test_two_runs_in_one_folder_keep_their_points(tmp_path):
    runs = [Setup().train(record_to=tmp_path, seed=seed)[2] for seed in (0, 1, 0)]
    again = [Setup().train(seed=seed)[2] for seed in (0, 1, 0)]
    for run, same in zip(runs, again, strict=True):
        for point, expected in zip(run.trajectory, same.trajectory, strict=True):
            assert all(torch.equal(point[name], expected[name]) for name in expected)
    assert len(list(tmp_path.glob("*.pt"))) == 3 * len(runs[0].trajectory)


def test_what_a_trajectory_takes_is_said_before_the_first_step(tmp_path, monkeypatch):
    trajectory = sys.modules["landscape_lib.training.trajectory"]
    place = trajectory.Place.of(tmp_path, torch.device("cpu"), "run")
    weights = {"w": torch.zeros(250_000)}  # of 4 bytes
    assert place.cost(weights, 20) == f"20 points of 1.0 MB, 0.02 GB on {tmp_path}"
    with pytest.raises(ValueError, match=r"record_every: .* free; record less often, or choose"):
        place.cost(weights, 10**12)
    monkeypatch.setattr(trajectory, "LARGE", 100)
    model = network()
    before = model.state_dict()["5.weight"].clone()
    with (
        pytest.warns(UserWarning, match=r"record_every: the trajectory takes 11 points of 0\.0 MB"),
        pytest.raises(KeyboardInterrupt),
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys.modules["landscape_lib.training.train"], "move", stopping(1))
        ll.train(model, images(), sgd(model), epochs=5, batch_size=8, record_every=2)
    assert torch.equal(model.state_dict()["5.weight"], before)


# --- what a checkpoint cannot hold --------------------------------------------------------------


class Holding:
    """A factor of the learning rate that holds something else than numbers."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, epoch: int) -> float:
        return 0.9**epoch


@pytest.mark.parametrize("held", [lambda: 1, np.random.default_rng(0)], ids=["lambda", "generator"])
def test_what_a_checkpoint_cannot_hold_is_found_before_the_first_step(held, tmp_path):
    def built(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LambdaLR(optimizer, Holding(held))

    seen: list[int] = []

    def counting(output: Tensor, target: Tensor) -> Tensor:
        seen.append(1)
        return F.cross_entropy(output, target)

    setup = Setup(schedule=built, arguments={"loss": counting, "test": None})
    with pytest.raises(TypeError, match=r"checkpoint: expected a schedule of numbers, .*LambdaLR"):
        setup.train(checkpoint=tmp_path / "run.pt")
    assert not seen
    setup.train()  # without one it runs


@pytest.mark.parametrize(
    "built",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lr_scheduler.LambdaLR(o, Holding(3)),
        lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, scale_fn=lambda x: x),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.LambdaLR(o, lambda e: 0.9**e)], [2]
        ),
    ],
    ids=["lambda", "object", "multiplicative", "cyclic", "sequence"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedules_made_of_functions_resume(built, tmp_path, monkeypatch):
    setup = Setup(schedule=built)
    interrupt(setup, tmp_path / "run.pt", 2 * STEPS + 2, monkeypatch)
    assert_same_run(setup.train(checkpoint=tmp_path / "run.pt"), setup.train())
