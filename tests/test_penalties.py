"""Which passes a penalty speaks of, in loops that other people write: each rule against a loop
that computes the penalty by hand.
"""

import contextlib
import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from lib import losses
from lib.losses import MAX_UNREAD, PENALTIES, ActivationL2, DecorrReg, SparsityReg

WEIGHTS = {"conv": 0.3, "fc": 2.0}


class Net(nn.Module):
    """A convolution, a ReLU in place after it, and a classifier; the convolution in a checkpoint if
    wanted.
    """

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.stem = nn.Conv2d(2, 3, 1)
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def block(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.fc(x.mean((2, 3)))


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def by_hand(model: Net, *batches: Tensor, batch: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the last batch; L_r of `relu`, and L_s, over the samples of all batches.

    Calls the functions of the layers, so that no hook runs.
    """
    squares, entropies = [], {"conv": [], "fc": []}
    for x in batches:
        linear = F.conv2d(
            F.conv2d(x, model.stem.weight, model.stem.bias), model.conv.weight, model.conv.bias
        )
        hidden = linear.relu()
        logits = F.linear(hidden.mean((2, 3)), model.fc.weight, model.fc.bias)
        squares += hidden.float().square().flatten(1).mean(1)
        for name, output in (("conv", linear), ("fc", logits)):
            log_p = output.float().log_softmax(1)
            fields = -(log_p.exp() * log_p).sum(1)
            entropies[name] += fields.flatten(1).sum(1) if fields.dim() > 1 else fields
    join = torch.mean if batch == "mean" else torch.sum
    sparsity = -sum(WEIGHTS[name] * join(torch.stack(entropies[name])) for name in WEIGHTS)
    return logits, torch.stack(squares).mean(), sparsity


def attached(model: nn.Module, **options) -> tuple[ActivationL2, SparsityReg]:
    return ActivationL2(model, "relu"), SparsityReg(model, WEIGHTS, **options)


def values(penalties) -> list[float]:
    return [penalty.penalty().item() for penalty in penalties]


def assert_read(penalties, model: Net, *batches: Tensor, batch: str = "mean") -> None:
    """Values and gradients are those by hand."""
    found = [penalty.penalty() for penalty in penalties]
    expected = by_hand(model, *batches, batch=batch)[1:]
    torch.testing.assert_close(found, list(expected))
    shared = [model.stem.weight, model.conv.weight]
    torch.testing.assert_close(
        torch.autograd.grad(sum(found), shared), torch.autograd.grad(sum(expected), shared)
    )


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        yield


# ---- one pass, several passes, reads


@pytest.mark.parametrize("batch", losses.BATCHES)
def test_one_use_has_the_very_bits_of_the_plain_operators(batch):
    model, x = Net(), images()
    al2, sparsity = attached(model, batch=batch)
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda m, i, out, n=name: outputs.update({n: out.clone()}))
        for name, module in model.named_modules()
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    l2 = losses.activation_l2(outputs["relu"].clone())
    terms = []
    for name, weight in WEIGHTS.items():
        entropy = losses.layer_entropy(model.get_submodule(name), outputs[name])
        joined = entropy.sum() / len(entropy) if batch == "mean" else entropy.sum()
        terms.append(weight * joined)
    expected = l2, -torch.stack(terms).sum()
    found = al2.penalty(), sparsity.penalty()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    slopes = [
        torch.autograd.grad(logits.sum() + sum(parts), model.stem.weight, retain_graph=True)[0]
        for parts in (found, expected)
    ]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("batch", losses.BATCHES)
@pytest.mark.parametrize("sizes", [(4,), (4, 4), (3, 1, 5)])
def test_several_passes_before_a_read_are_joined_over_all_their_samples(sizes, batch):
    model = Net()
    penalties = attached(model, batch=batch)
    batches = [(k + 1) * images(size, k) for k, size in enumerate(sizes)]
    for x in batches:
        model(x)
    assert_read(penalties, model, *batches, batch=batch)


def test_a_layer_that_is_used_twice_in_a_pass_is_averaged_over_its_uses():
    layer, x = nn.Conv2d(2, 2, 3, padding=1), images()
    model = nn.Sequential(layer, nn.ReLU(inplace=True), layer)
    al2 = ActivationL2(model, "0")
    sparsity = SparsityReg(model, {"0": 1.0})
    with torch.no_grad():
        first = layer(x)
        second = layer(first.relu())
    model(x)
    expected = (first.square().mean() + second.square().mean()) / 2
    torch.testing.assert_close(al2.penalty().detach(), expected)
    entropies = torch.stack([losses.rfav_entropy(out).sum() / len(x) for out in (first, second)])
    torch.testing.assert_close(sparsity.penalty().detach(), -entropies.mean())


def test_a_use_without_samples_counts_for_nothing_beside_others():
    model = Net()
    penalties = attached(model)
    model(images())
    model(images(0))
    assert_read(penalties, model, images())


def test_a_read_begins_anew_and_a_second_read_gives_the_same_tensor():
    model = Net()
    penalties = attached(model)
    for seed in range(3):
        model(images(seed=seed))
        first = [penalty.penalty() for penalty in penalties]
        assert all(p.penalty() is value for p, value in zip(penalties, first, strict=True))
        assert_read(penalties, model, images(seed=seed))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_value_that_was_first_read_for_a_log_can_still_be_trained_on(mode):
    model = Net()
    penalties = attached(model)
    model(images(3, 0))
    model(images(4, 1))
    with mode():
        logged = values(penalties)
    assert_read(penalties, model, images(3, 0), images(4, 1))
    assert values(penalties) == logged


def test_gradients_accumulate_over_micro_batches():
    model, other = Net(), Net()
    penalties = attached(model)
    for seed in range(3):
        x = images(seed=seed)
        (model(x).square().mean() + sum(p.penalty() for p in penalties)).backward()
        logits, l2, sparsity = by_hand(other, x)
        (logits.square().mean() + l2 + sparsity).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


# ---- passes that do not count


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_before_the_read_disturbs_nothing(mode):
    model = Net()
    penalties = attached(model)
    with mode():
        model(5 * images(seed=7))
    model(images())
    with mode():
        model(5 * images(seed=7))
    assert_read(penalties, model, images())


def test_frozen_passes_count_for_nothing():
    model = Net()
    penalties = attached(model)
    model(images())
    model.requires_grad_(False)
    model(5 * images())
    model.requires_grad_(True)
    assert_read(penalties, model, images())


def test_an_evaluation_between_two_reads_of_one_step_disturbs_nothing():
    model = Net()
    penalties = attached(model)
    model(images())
    first = [penalty.penalty() for penalty in penalties]
    with torch.no_grad():
        model(5 * images())
    sum(penalty.penalty() for penalty in penalties).backward()
    # for a log, after the backward
    assert all(penalty.penalty() is value for penalty, value in zip(penalties, first, strict=True))


def test_after_a_step_and_an_evaluation_there_is_nothing_to_read():
    model = Net()
    penalties = attached(model)
    model(images())
    sum(penalty.penalty() for penalty in penalties).backward()
    with torch.no_grad():
        model(images())
    for penalty, name in zip(penalties, ("relu", "conv"), strict=True):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=rf"'{name}' .*without grad.*only evaluation"):
                penalty.penalty()
    model(images(seed=2))
    assert_read(penalties, model, images(seed=2))


def test_an_evaluation_measures_nothing(monkeypatch):
    model = Net()
    attached(model)
    monkeypatch.setattr(losses, "activation_l2", None)
    monkeypatch.setattr(losses, "layer_entropy", None)
    with torch.no_grad():
        model(images())


def test_a_layer_that_did_not_run_is_named_with_the_reason():
    model = Net()
    sparsity = SparsityReg(model, WEIGHTS)
    model.conv(model.stem(images()))
    with pytest.raises(RuntimeError, match=r"read: 'fc' has not run since the penalty was attach"):
        sparsity.penalty()
    model(images())  # what came before the failed read is no part of this
    torch.testing.assert_close(sparsity.penalty(), by_hand(model, images())[2])
    model.conv(model.stem(images()))
    with pytest.raises(RuntimeError, match=r"read: 'fc' has not run since the last read"):
        sparsity.penalty()
    with torch.no_grad():
        model.fc(torch.ones(1, 4))
    with pytest.raises(RuntimeError, match=r"read: 'fc' has run without gradients only"):
        sparsity.penalty()


# ---- backward


def test_a_backward_ends_the_collection_even_if_nobody_read():
    model = Net()
    penalties = attached(model)
    for seed in range(MAX_UNREAD + 5):
        model(images(1, seed)).sum().backward()
    model(images())
    assert_read(penalties, model, images())


def test_after_a_backward_and_no_newer_pass_a_first_read_still_gives_the_value():
    model = Net()
    penalties = attached(model)
    model(images(3, 0))
    model(images(4, 1)).sum().backward()
    expected = by_hand(model, images(3, 0), images(4, 1))[1:]
    assert values(penalties) == pytest.approx([value.item() for value in expected], rel=1e-5)


def test_a_backward_is_noticed_where_a_view_is_overwritten_in_place():
    model = nn.Sequential(
        nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.ReLU(inplace=True)
    )
    al2 = ActivationL2(model, "2")
    x = torch.randn(3, 6)
    for _ in range(2):
        model(9 * x).sum().backward()
    model(x)
    torch.testing.assert_close(al2.penalty(), model[0](x).square().mean())


def test_a_gradient_penalty_before_the_read_leaves_the_value():
    model = Net()
    penalties = attached(model)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    loss = slope.square().sum() + sum(penalty.penalty() for penalty in penalties)
    logits, l2, sparsity = by_hand(model, x)
    (plain,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    expected = plain.square().sum() + l2 + sparsity
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, model.conv.weight),
        torch.autograd.grad(expected, model.conv.weight),
    )


@pytest.mark.parametrize("read", ["before", "after"])
def test_non_reentrant_checkpoints_change_nothing(read):
    model, other = Net(reentrant=False), Net()
    penalties = attached(model)
    for seed in range(3):
        x = images(seed=seed)
        loss = model(x).sum()
        logits, l2, sparsity = by_hand(other, x)
        if read == "before":
            loss = loss + sum(penalty.penalty() for penalty in penalties)
            (logits.sum() + l2 + sparsity).backward()
        else:
            logits.sum().backward()
        loss.backward()
        expected = [l2.item(), sparsity.item()]
        assert values(penalties) == pytest.approx(expected, rel=1e-5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_in_a_reentrant_checkpoint_the_layer_and_the_remedy_are_named():
    model = Net(reentrant=True)
    al2, sparsity = attached(model)
    logits = model(images())
    for penalty, name in ((al2, "relu"), (sparsity, "conv")):
        with pytest.raises(RuntimeError, match=rf"read: '{name}' has.*use_reentrant=False there"):
            penalty.penalty()
    logits.sum().backward()
    with pytest.raises(RuntimeError, match=r"'conv' has.*use_reentrant=False"):
        sparsity.penalty()


# ---- passes that nobody reads


def test_unread_passes_do_not_pile_up_without_end():
    model, x = Net(), images(1)
    al2 = ActivationL2(model, "relu")
    for _ in range(MAX_UNREAD):
        model(x)
    with pytest.raises(
        RuntimeError, match=r"'relu' has run 100 times.*\.penalty\(\).*no_grad.*max"
    ):
        model(x)
    assert al2.penalty().item() == pytest.approx(by_hand(model, x)[1].item(), rel=1e-5)
    model(x)


def test_more_uses_within_a_pass_can_be_allowed():
    layer = nn.Linear(3, 3)
    penalties = [
        ActivationL2(nn.Sequential(layer), "0", max_unread=MAX_UNREAD + 50),
        SparsityReg(nn.Sequential(layer), {"0": 1.0}, max_unread=MAX_UNREAD + 50),
    ]
    x = torch.randn(2, 3)
    for _ in range(MAX_UNREAD + 50):
        layer(x)
    assert values(penalties)[0] == pytest.approx(layer(x).square().mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="max_unread is 0"):
        ActivationL2(nn.Sequential(layer), "0", max_unread=0)


@pytest.mark.parametrize("read", [False, True])
def test_a_graph_that_nobody_wants_any_more_is_freed_at_once(read):
    class Mark(nn.Module):
        """Puts a Python object into the graph, which lives as long as the graph does."""

        def forward(self, x):
            mark = contextlib.nullcontext()
            marks.append(weakref.ref(mark))
            x = x.clone()
            x.register_hook(lambda gradient, mark=mark: None)
            return x

    marks = []
    model = nn.Sequential(nn.Linear(3, 3), Mark(), nn.Linear(3, 3))
    penalties = [ActivationL2(model, "2"), SparsityReg(model, {"2": 1.0})]
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            model(torch.randn(2, 3))
        if read:
            values(penalties)
            model(torch.randn(2, 3))
            assert [mark() is None for mark in marks] == [True, True, False]
        del model, penalties
        assert all(mark() is None for mark in marks)
    finally:
        gc.enable()


# ---- copies


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "averaged", "pickle", "save"])
def test_a_copy_of_the_network_is_free_of_penalties_and_leaves_the_original_s_alone(how, ran):
    model = Net()
    penalties = [*attached(model), DecorrReg(model, {"conv": 1.0})]
    if ran:
        model(images())
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "averaged":
        other = AveragedModel(model).module
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    if not ran:
        model(images())
    with torch.no_grad():
        other.conv.weight.mul_(5)
    other(images()).sum().backward()  # neither adds a pass nor ends the collection
    other(images())
    model(images(seed=2))
    assert_read(penalties[:2], model, images(), images(seed=2))
    own = attached(other)
    other(images())
    assert_read(own, other, images())


def test_a_network_that_had_a_penalty_is_loaded_where_this_project_is_not_installed(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    ActivationL2(model, "1")
    model(torch.randn(2, 3))
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; sys.modules['lib'] = None; "
        "model = torch.load('model.pt', weights_only=False); "
        "model(torch.ones(2, 3)).sum().backward()"
    )
    done = _isolated(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_penalty_says_that_it_is_a_copy(how):
    model = Net()
    model.penalties = attached(model)  # an attribute of the network itself
    model(images())
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    other(images())
    for penalty in other.penalties:
        with pytest.raises(
            RuntimeError, match="is a copy, which is attached to no network; attach"
        ):
            penalty.penalty()
        penalty.remove()
        with pytest.raises(RuntimeError, match="is a copy"):
            penalty.penalty()
    assert_read(model.penalties, model, images())


def test_a_decorrelation_penalty_copied_with_its_network_speaks_of_the_copy():
    model = Net()
    model.penalty = DecorrReg(model, {"conv": 1.0}, pairs="square")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv.weight.normal_()
    expected = losses.decorrelation(other.conv.weight, pairs="square")
    assert torch.equal(other.penalty.penalty(), expected)
    assert not torch.equal(model.penalty.penalty(), expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_removed_penalty_says_so(name):
    model = Net()
    penalty = PENALTIES[name](model, "relu" if name == "activation_l2" else WEIGHTS)
    model(images())
    penalty.penalty()
    penalty.remove()
    model(images())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="was removed from its network; attach a new one"):
            penalty.penalty()
        penalty.remove()
    assert not any(module._forward_hooks for module in model.modules())


def test_every_penalty_has_a_metric_of_its_own():
    metrics = [kind.metric for kind in PENALTIES.values()]
    assert metrics == ["activation_l2", "sparsity_penalty", "decorrelation_penalty"]


def test_networks_in_several_threads_do_not_see_each_other():
    models = [Net() for _ in range(3)]
    penalties = [attached(model) for model in models]
    barrier, found = threading.Barrier(len(models)), {}

    def train(k: int) -> None:
        for step in range(5):
            barrier.wait()
            models[k](images(seed=10 * k + step))
            if k == 0:  # one evaluates while the others train
                with torch.no_grad():
                    models[k](images())
            barrier.wait()
            found[k, step] = values(penalties[k])
            barrier.wait()
            sum(penalty.penalty() for penalty in penalties[k]).backward()

    threads = [threading.Thread(target=train, args=(k,)) for k in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for (k, step), value in found.items():
        expected = by_hand(models[k], images(seed=10 * k + step))[1:]
        assert value == pytest.approx([one.item() for one in expected], rel=1e-5)


# ---- what compilers and wrappers do with a network


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("read_within", [False, True])
def test_a_compiled_network_trains_validates_and_trains_again(backend, read_within):
    torch._dynamo.reset()
    model, other = Net(), Net()
    penalties = attached(model)

    def plain(x):
        logits = model(x)
        return logits.sum() + sum(p.penalty() for p in penalties) if read_within else logits.sum()

    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    for step in range(4):
        x = images(seed=step)
        loss = compiled(x)
        if step == 1:
            with torch.no_grad():
                model(images())
        if not read_within:
            loss = loss + sum(penalty.penalty() for penalty in penalties)
        loss.backward()
        logits, l2, sparsity = by_hand(other, x)
        expected = logits.sum() + l2 + sparsity
        expected.backward()
        torch.testing.assert_close(loss, expected)
        if not read_within:
            model.eval()
            with torch.no_grad():
                compiled(x)
            model.train()
            with pytest.raises(RuntimeError, match="only evaluation since"):
                penalties[0].penalty()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_a_compiled_network_s_two_passes_before_a_read_are_averaged_and_its_copy_is_free():
    torch._dynamo.reset()
    model = Net()
    penalties = attached(model)
    compiled = torch.compile(model, backend="eager")
    for step in range(2):
        compiled(images(4, step))
        compiled(images(3, step + 5))
        assert_read(penalties, model, images(4, step), images(3, step + 5))
    torch.compile(copy.deepcopy(model), backend="eager")(images()).sum().backward()
    with torch.no_grad():
        expected = by_hand(model, images(4, 1), images(3, 6))[1]
    torch.testing.assert_close(penalties[0].penalty().detach(), expected)


def test_tracing_and_exporting_work_and_are_no_passes():
    model = Net()
    penalties = attached(model)
    model(images())
    traced = torch.jit.trace(model, images(seed=3))
    exported = torch.export.export(model, (images(seed=4),)).module()
    symbolic = torch.fx.symbolic_trace(model)
    assert_read(penalties, model, images())
    for other in (traced, exported, symbolic):
        with torch.no_grad():
            torch.testing.assert_close(other(images(seed=5)), model(images(seed=5)))


def test_a_block_of_layers_can_be_traced_symbolically():
    """As torchvision's `create_feature_extractor` does."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
    al2, x = ActivationL2(model, "0"), torch.randn(5, 3)
    model(x)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(al2.penalty(), model[0](x).square().mean())
    torch.testing.assert_close(traced(x), model(x))


def test_transforms_of_torch_func_read_their_own_passes():
    model, x = Net(), images()
    penalties = attached(model)
    given = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, image, penalised=True):
        total = functional_call(model, parameters, (image[None],)).sum()
        return total + sum(p.penalty() for p in penalties) if penalised else total

    vmap(grad(lambda p, image: loss(p, image, False)), (None, 0))(given, x)  # that nobody reads
    found = vmap(grad(loss), (None, 0))(given, x)
    outside_in = grad(lambda p: vmap(loss, (None, 0))(p, x).sum())(given)
    for k, image in enumerate(x):
        logits, l2, sparsity = by_hand(model, image[None])
        slopes = torch.autograd.grad(logits.sum() + l2 + sparsity, model.parameters())
        for (name, _), slope in zip(model.named_parameters(), slopes, strict=True):
            torch.testing.assert_close(found[name][k], slope)
    for name, slopes in found.items():
        torch.testing.assert_close(outside_in[name], slopes.sum(0))
    vmap(lambda image: loss(given, image, False))(x)
    model(x)
    assert_read(penalties, model, x)


def test_lazy_layers_and_a_scaled_loss():
    model = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    )
    penalties = [ActivationL2(model, "1"), SparsityReg(model, {"0": 1.0, "3": 1.0})]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model(images())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        values(penalties)
        with torch.autocast("cpu", torch.float16):
            loss = model(images()).float().sum() + sum(penalty.penalty() for penalty in penalties)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1024 and loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_filters_correlation_is_not_narrowed_by_autocast(dtype):
    weight = torch.randn(64, 30, requires_grad=True)
    found, slopes = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            found.append(losses.filter_correlation(weight))
        slopes.append(torch.autograd.grad(found[-1].square().sum(), weight)[0])
    assert torch.equal(*found) and torch.equal(*slopes)
    assert losses.filter_correlation(weight.to("meta")).shape == (64, 64)


def test_a_layer_that_gives_no_tensor_is_refused_by_name():
    model = nn.Sequential(nn.LSTM(3, 4))
    ActivationL2(model, "0")
    with pytest.raises(
        TypeError, match="'0' gives a tuple; a penalty needs a layer that gives one"
    ):
        model(torch.randn(2, 5, 3))


def test_saving_a_layer_s_output_warns_of_nothing():
    model = Net()
    attached(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model(images()), io.BytesIO())


# ---- all at once


def test_in_a_stranger_s_loop_values_and_gradients_are_those_by_hand():
    """An EMA copy, a validation between forward and read, a checkpointed block, two micro-batches
    a step, and bfloat16 by autocast.
    """
    model, other = Net(reentrant=False), Net()
    penalties = attached(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, other)]
    for step in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(2):
            x = images(3 + part, 2 * step + part)
            labels = torch.arange(len(x)) % 5
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
                model.eval()
                with torch.no_grad():
                    model(9 * images(seed=99))
                    average(images(seed=99))
                model.train()
                found = [penalty.penalty() for penalty in penalties]
                loss = F.cross_entropy(logits.float(), labels) + sum(found)
            (loss / 2).backward()
            with torch.autocast("cpu", torch.bfloat16):
                logits, l2, sparsity = by_hand(other, x)
                expected = F.cross_entropy(logits.float(), labels) + l2 + sparsity
            (expected / 2).backward()
            torch.testing.assert_close(found, [l2, sparsity], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=2e-2, atol=2e-3)
        for optimizer in optimizers:
            optimizer.step()
        other.load_state_dict(model.state_dict())  # rounding to bfloat16 shall not add up
        average.update_parameters(model)


ALONE = """
import sys
sys.modules["lib"] = None
import torch
try:
    import torchvision
except RuntimeError as error:  # wheels for CUDA beside a torch without it
    if "operator torchvision::" not in str(error):
        raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import losses
model = torchvision.models.squeezenet1_1(num_classes=4)
sparsity = losses.SparsityReg(model, {"features.0": 0.001})
al2 = losses.ActivationL2(model, "features.1")
before = model.features[0].weight.detach().clone()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
logits = model(torch.randn(2, 3, 64, 64))
loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
(loss + sparsity.penalty() + al2.penalty()).backward()
optimizer.step()
assert not torch.equal(before, model.features[0].weight)
print(losses.__file__)
"""


def _isolated(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs code in a folder, where Python finds nothing of this project."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_file_works_alone_in_another_project(tmp_path):
    (tmp_path / "losses.py").write_bytes(Path(losses.__file__).read_bytes())
    done = _isolated(ALONE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "losses.py")
