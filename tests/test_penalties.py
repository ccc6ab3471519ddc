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
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from lib import losses
from lib.losses import MAX_UNREAD, PENALTIES, ActivationL2, DecorrReg, SparsityReg

WEIGHTS = {"block.0": 0.3, "fc": 2.0}


class Net(nn.Module):
    """A block that ends with a ReLU in place, in a checkpoint if wanted, and a classifier."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.stem = nn.Conv2d(2, 3, 1)
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, how = self.stem(x), self.reentrant
        x = self.block(x) if how is None else checkpoint(self.block, x, use_reentrant=how)
        return self.fc(x.mean((2, 3)))


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def by_hand(model: Net, *batches: Tensor, batch: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the last batch; L_r of the block, and L_s, over the samples of all batches.

    Calls the functions of the layers, so that no hook runs.
    """
    squares, entropies = [], {"block.0": [], "fc": []}
    for x in batches:
        stem = F.conv2d(x, model.stem.weight, model.stem.bias)
        linear = F.conv2d(stem, model.block[0].weight, model.block[0].bias)
        hidden = linear.relu()
        logits = F.linear(hidden.mean((2, 3)), model.fc.weight, model.fc.bias)
        squares += hidden.float().square().flatten(1).mean(1)
        for name, output in (("block.0", linear), ("fc", logits)):
            log_p = output.float().log_softmax(1)
            entropies[name] += -(log_p.exp() * log_p).flatten(1).sum(1)
    join = torch.mean if batch == "mean" else torch.sum
    sparsity = -sum(WEIGHTS[name] * join(torch.stack(entropies[name])) for name in WEIGHTS)
    return logits, torch.stack(squares).mean(), sparsity


def attached(model: nn.Module, batch: str = "mean", **options: int) -> tuple:
    return ActivationL2(model, "block", **options), SparsityReg(model, WEIGHTS, batch, **options)


def read(penalties) -> list[Tensor]:
    return [penalty.penalty() for penalty in penalties]


def values(penalties) -> list[float]:
    return [value.item() for value in read(penalties)]


def assert_read(penalties, model: Net, *batches: Tensor, batch: str = "mean") -> None:
    """Values and gradients are those by hand."""
    found = read(penalties)
    expected = by_hand(model, *batches, batch=batch)[1:]
    torch.testing.assert_close(found, list(expected))
    shared = [model.stem.weight, model.block[0].weight]
    torch.testing.assert_close(
        torch.autograd.grad(sum(found), shared), torch.autograd.grad(sum(expected), shared)
    )


def assert_same_gradients(model: nn.Module, other: nn.Module, **tolerances: float) -> None:
    found, expected = ([p.grad for p in net.parameters()] for net in (model, other))
    torch.testing.assert_close(found, expected, **tolerances)


def assert_nothing_to_read(penalty, why: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match=why):
            penalty.penalty()


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        yield


# ---- one pass, several passes, reads


@pytest.mark.parametrize("batch", losses.BATCHES)
def test_one_use_has_the_very_bits_of_the_plain_operators(batch):
    model, outputs = Net(), {}
    penalties = attached(model, batch)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, out, n=name: outputs.update({n: out.clone()}))
    logits = model(images())
    terms = []
    for name, weight in WEIGHTS.items():
        entropy = losses.layer_entropy(model.get_submodule(name), outputs[name])
        terms.append(weight * entropy.sum() / (len(entropy) if batch == "mean" else 1))
    expected = [losses.activation_l2(outputs["block"].clone()), -torch.stack(terms).sum()]
    found = read(penalties)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    totals = [logits.sum() + sum(parts) for parts in (found, expected)]
    one, other = (torch.autograd.grad(x, model.stem.weight, retain_graph=True) for x in totals)
    assert torch.equal(*one, *other)


@pytest.mark.parametrize("batch", losses.BATCHES)
@pytest.mark.parametrize("sizes", [(4,), (4, 4), (3, 1, 5), (4, 0)])
def test_several_passes_before_a_read_are_joined_over_all_their_samples(sizes, batch):
    model = Net()
    penalties = attached(model, batch)
    batches = [(k + 1) * images(size, k) for k, size in enumerate(sizes)]
    for x in batches:
        model(x)
    assert_read(penalties, model, *batches, batch=batch)


def test_a_layer_that_is_used_twice_in_a_pass_is_averaged_over_its_uses():
    layer, x = nn.Conv2d(2, 2, 3, padding=1), images()
    model = nn.Sequential(layer, nn.ReLU(inplace=True), layer)
    penalties = ActivationL2(model, "0"), SparsityReg(model, {"0": 1.0})
    with torch.no_grad():
        first = layer(x)
        second = layer(first.relu())
    model(x)
    square = (first.square().mean() + second.square().mean()) / 2
    entropies = torch.stack([losses.rfav_entropy(out).sum() / len(x) for out in (first, second)])
    assert values(penalties) == pytest.approx([square.item(), -entropies.mean().item()], rel=1e-5)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_read_begins_anew_and_later_ones_give_the_same_tensor_even_if_it_was_for_a_log(mode):
    model = Net()
    penalties = attached(model)
    for seed in range(3):
        pair = images(3, seed), images(4, seed + 1)
        for x in pair:
            model(x)
        with mode():
            first = read(penalties)
        assert_read(penalties, model, *pair)
        assert all(p.penalty() is value for p, value in zip(penalties, first, strict=True))


# ---- passes that do not count


@contextlib.contextmanager
def frozen(model: nn.Module):
    model.requires_grad_(False)
    yield
    model.requires_grad_(True)


@pytest.mark.parametrize(
    "quiet", [lambda model: torch.no_grad(), lambda model: torch.inference_mode(), frozen]
)
def test_passes_without_gradients_before_the_read_disturb_and_measure_nothing(quiet, monkeypatch):
    model = Net()
    penalties = attached(model)
    for counts in (False, True, False):
        with contextlib.nullcontext() if counts else quiet(model), monkeypatch.context() as patch:
            if not counts:
                patch.setattr(losses, "activation_l2", None)
                patch.setattr(losses, "layer_entropy", None)
            model(images() if counts else 5 * images(seed=7))
    assert_read(penalties, model, images())


def test_an_evaluation_between_two_reads_of_one_step_disturbs_nothing_but_ends_it_after_that():
    model = Net()
    penalties = attached(model)
    model(images())
    first = read(penalties)
    with torch.no_grad():
        model(5 * images())
    sum(read(penalties)).backward()
    # for a log, after the backward
    assert all(p.penalty() is value for p, value in zip(penalties, first, strict=True))
    with torch.no_grad():
        model(images())
    for penalty, name in zip(penalties, ("block", "block.0"), strict=True):
        assert_nothing_to_read(penalty, rf"'{name}' .*without grad.*only evaluation")
    model(images(seed=2))
    assert_read(penalties, model, images(seed=2))


def test_a_layer_that_did_not_run_is_named_with_the_reason():
    model = Net()
    al2, sparsity = attached(model)
    only = "has not run since the penalty was attached"
    assert_nothing_to_read(al2, f"read: 'block' {only}.*forward")
    assert_nothing_to_read(sparsity, f"read: 'block.0' {only}; 'fc' {only}.*forward")
    model.block[0](model.stem(images()))
    assert_nothing_to_read(sparsity, f"read: 'fc' {only}")
    model(images())  # what came before the failed read is no part of this
    torch.testing.assert_close(sparsity.penalty(), by_hand(model, images())[2])
    model.block[0](model.stem(images()))
    assert_nothing_to_read(sparsity, "read: 'fc' has not run since the last read")
    with torch.no_grad():
        model.fc(torch.ones(1, 4))
    assert_nothing_to_read(sparsity, "read: 'fc' has run without gradients only")


def test_a_pass_that_failed_does_not_count():
    model = Net()
    penalties = attached(model)

    def fail(*given):
        raise RuntimeError("out of memory")

    for before in (0, 1):  # passes that succeed
        for _ in range(before):
            model(images())
        broken = model.fc.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(images(seed=2))
        broken.remove()
        if not before:
            assert_nothing_to_read(penalties[1], "'block.0' has run in a pass only that failed")
        model(images(3, seed=3))
        assert_read(penalties, model, *[images()] * before, images(3, seed=3))


def test_a_pass_that_was_interrupted_by_hand_does_not_count():
    """PyTorch calls no hook after a KeyboardInterrupt: the next call has to notice."""
    model = Net()
    penalties = attached(model)

    def stop(*given):
        raise KeyboardInterrupt

    stopped = model.fc.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(images(seed=2))
    stopped.remove()
    model(images(3, seed=3))
    assert_read(penalties, model, images(3, seed=3))
    model.block(model.stem(images()))  # a part alone, which no call is open for
    penalties[0].penalty()


def test_a_network_that_calls_itself_is_one_pass_with_what_it_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            return self(self.fc(x), again=False) if again else self.fc(x)

    model = Twice()
    penalty = ActivationL2(model, "fc")
    x = torch.randn(4, 3)
    first = model.fc.weight.detach() @ x.T + model.fc.bias.detach()[:, None]
    second = model.fc.weight.detach() @ first + model.fc.bias.detach()[:, None]
    model(x)
    mean = (first.square().mean() + second.square().mean()) / 2
    torch.testing.assert_close(penalty.penalty().detach(), mean)


def test_a_layer_that_was_replaced_is_said():
    model = Net()
    penalty = SparsityReg(model, {"fc": 1.0})
    decorrelation = DecorrReg(model, {"block.0": 1.0, "fc": 1.0})
    model.block = nn.Sequential(model.block)  # wrapped, it is still there
    assert decorrelation.penalty().requires_grad
    model.fc = nn.Linear(4, 2)
    model(images())
    assert_nothing_to_read(penalty, "'fc' did not run when the network did: it was replaced")
    assert_nothing_to_read(decorrelation, "'fc' was replaced in the network.*attach a new one")


# ---- backward


def test_a_backward_ends_the_collection_even_if_nobody_read():
    model = Net()
    penalties = attached(model)
    for seed in range(MAX_UNREAD + 5):
        model(images(1, seed)).sum().backward()
    model(images())
    assert_read(penalties, model, images())


@pytest.mark.parametrize("reentrant", [None, False])
@pytest.mark.parametrize("before", [True, False])
def test_gradients_add_up_with_checkpoints_and_a_first_read_may_follow_the_backward(
    reentrant, before
):
    model, other = Net(reentrant), Net()
    penalties = attached(model)
    for seed in range(3):
        pair = images(3, seed), images(4, seed + 10)
        loss = sum(model(x).sum() for x in pair)
        plain = sum(by_hand(other, x)[0].sum() for x in pair)
        expected = by_hand(other, *pair)[1:]
        if before:
            loss = loss + sum(read(penalties))
            plain = plain + sum(expected)
        loss.backward()
        plain.backward()
        assert values(penalties) == pytest.approx([e.item() for e in expected], rel=1e-5)
    assert_same_gradients(model, other)


def test_in_a_reentrant_checkpoint_the_layer_and_the_remedy_are_named():
    model = Net(reentrant=True)
    al2, sparsity = attached(model)
    logits = model(images())
    assert_nothing_to_read(al2, "read: 'block' has.*use_reentrant=False there")
    assert_nothing_to_read(sparsity, "read: 'block.0' has.*use_reentrant=False there")
    logits.sum().backward()
    assert_nothing_to_read(sparsity, "'block.0' has.*use_reentrant=False")


def test_a_backward_is_noticed_where_a_view_is_overwritten_in_place():
    layers = nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.ReLU(inplace=True)
    model, x = nn.Sequential(*layers), torch.randn(3, 6)
    al2 = ActivationL2(model, "2")
    for _ in range(2):
        model(9 * x).sum().backward()
    model(x)
    torch.testing.assert_close(al2.penalty(), model[0](x).square().mean())


# ---- passes that nobody reads


@pytest.mark.parametrize("options", [{}, {"max_unread": MAX_UNREAD + 50}])
def test_unread_passes_do_not_pile_up_without_end_and_more_can_be_allowed(options):
    model, x = Net(), images(1)
    penalties = attached(model, **options)
    limit = options.get("max_unread", 100)
    for _ in range(limit):
        model(x)
    message = rf"'block.0' .* {limit} times.*\.penalty\(\).*no_grad.*max"
    with pytest.raises(RuntimeError, match=message):
        model(x)
    assert_read(penalties, model, x)
    model(x)


@pytest.mark.parametrize("is_read", [False, True])
def test_a_graph_that_nobody_wants_any_more_is_freed_at_once(is_read):
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
        if is_read:
            values(penalties)
            model(torch.randn(2, 3))
            assert [mark() is None for mark in marks] == [True, True, False]
        del model, penalties
        assert all(mark() is None for mark in marks)
    finally:
        gc.enable()


# ---- copies, removal


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_of_the_network_is_free_of_penalties_and_leaves_the_original_s_alone(copied, ran):
    model = Net()
    penalties = [*attached(model), DecorrReg(model, {"block.0": 1.0})]
    if ran:
        model(images())
    other = copied(model)
    if not ran:
        model(images())
    with torch.no_grad():
        other.block[0].weight.mul_(5)
    other(images()).sum().backward()  # neither adds a pass nor ends the collection
    other(images())
    model(images(seed=2))
    assert_read(penalties[:2], model, images(), images(seed=2))
    own = attached(other)
    other(images())
    assert_read(own, other, images())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copied_penalty_says_that_it_is_a_copy_or_speaks_of_the_copied_weights(copied):
    model = Net()
    model.penalties = attached(model)  # an attribute of the network itself
    model.decorr = DecorrReg(model, {"block.0": 1.0}, pairs="square")
    model(images())
    other = copied(model)
    other(images())
    for penalty in other.penalties:
        assert_nothing_to_read(penalty, "is a copy, which is attached to no network; attach")
        penalty.remove()
        assert_nothing_to_read(penalty, "is a copy")
    assert_read(model.penalties, model, images())
    with torch.no_grad():
        other.block[0].weight.normal_()
    expected = losses.decorrelation(other.block[0].weight, pairs="square")
    assert torch.equal(other.decorr.penalty(), expected)
    assert not torch.equal(model.decorr.penalty(), expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_leaves_the_output_alone_and_a_removed_one_leaves_no_hook_and_says_so(name):
    model = Net()
    before = model(images())
    penalty = PENALTIES[name](model, "block" if name == "activation_l2" else WEIGHTS)
    assert torch.equal(model(images()), before)
    penalty.penalty()
    for _ in range(2):  # twice does no harm
        penalty.remove()
        assert not any(module._forward_hooks for module in model.modules())
        assert torch.equal(model(images()), before)
        assert_nothing_to_read(penalty, "was removed from its network; attach a new one")


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
            sum(read(penalties[k])).backward()

    threads = [threading.Thread(target=train, args=(k,)) for k in range(3)]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            act(thread)
    assert len(found) == 15
    for (k, step), value in found.items():
        expected = by_hand(models[k], images(seed=10 * k + step))[1:]
        assert value == pytest.approx([one.item() for one in expected], rel=1e-5)


# ---- what compilers and wrappers do with a network


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("read_within", [False, True])
def test_a_compiled_network_trains_validates_and_trains_again_and_its_copy_is_free(
    backend, read_within
):
    torch._dynamo.reset()
    model, other = Net(), Net()
    penalties = attached(model)

    def plain(x):
        total = model(x).sum()
        return total + sum(p.penalty() for p in penalties) if read_within else total

    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    for step in range(4):
        passes = [images(seed=step + 5 * k) for k in range(1 if read_within else 1 + step % 2)]
        loss = sum(compiled(x) for x in passes)
        if step == 1:
            with torch.no_grad():
                model(images())
        if step == 2:
            torch.compile(copy.deepcopy(model), backend="eager")(images()).sum().backward()
        if not read_within:
            loss = loss + sum(read(penalties))
        loss.backward()
        expected = sum(by_hand(other, x)[0].sum() for x in passes)
        expected = expected + sum(by_hand(other, *passes)[1:])
        expected.backward()
        torch.testing.assert_close(loss, expected)
        if not read_within:
            model.eval()
            with torch.no_grad():
                compiled(passes[0])
            model.train()
            assert_nothing_to_read(penalties[0], "only evaluation since")
    assert_same_gradients(model, other)


def test_tracing_and_exporting_work_and_are_no_passes():
    """Symbolic tracing goes into the block, as torchvision's `create_feature_extractor` does."""
    model, x = Net(), images(seed=5)
    penalties = attached(model)
    model(images())
    traced = torch.jit.trace(model, images(seed=3))
    exported = torch.export.export(model, (images(seed=4),)).module()
    symbolic = torch.fx.symbolic_trace(model)
    assert_read(penalties, model, images())
    for other in (traced, exported, symbolic):
        torch.testing.assert_close(other(x), model(x))


def test_transforms_of_torch_func_read_their_own_passes():
    model, x = Net(), images()
    penalties = attached(model)
    given = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, image, penalised=True):
        total = functional_call(model, parameters, (image[None],)).sum()
        return total + sum(read(penalties)) if penalised else total

    vmap(grad(lambda p, image: loss(p, image, False)), (None, 0))(given, x)  # that nobody reads
    found = vmap(grad(loss), (None, 0))(given, x)
    outside_in = grad(lambda p: vmap(loss, (None, 0))(p, x).sum())(given)
    for k, image in enumerate(x):
        logits, l2, sparsity = by_hand(model, image[None])
        slopes = torch.autograd.grad(logits.sum() + l2 + sparsity, model.parameters())
        for name, slope in zip(given, slopes, strict=True):
            torch.testing.assert_close(found[name][k], slope)
    torch.testing.assert_close(outside_in, {name: each.sum(0) for name, each in found.items()})
    vmap(lambda image: loss(given, image, False))(x)
    model(x)
    assert_read(penalties, model, x)


def test_lazy_layers_and_a_scaled_loss():
    layers = nn.LazyConv2d(4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    model = nn.Sequential(*layers)
    penalties = [ActivationL2(model, "1"), SparsityReg(model, {"0": 1.0, "3": 1.0})]
    model(images())
    values(penalties)
    with torch.autocast("cpu", torch.float16):
        loss = model(images()).float().sum() + sum(read(penalties))
    (1024 * loss).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


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


# ---- what a layer returns, and what a sample is


class Gives(nn.Module):
    """A linear layer, and what becomes of its output."""

    def __init__(self, change) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.change = change

    def forward(self, x: Tensor):
        return self.change(self.fc(x))


def entropies(z: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=z).entropy()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM, nn.MultiheadAttention])
def test_recurrent_layers_and_attention_are_measured_with_the_sample_as_the_unit(kind, first):
    sizes = (4, 2) if kind is nn.MultiheadAttention else (4, 5)
    layer = kind(*sizes, batch_first=first)
    al2, total, count = ActivationL2(nn.ModuleDict({"layer": layer}), "layer"), 0, 0
    for samples, steps in ((3, 5), (2, 7)):
        x = torch.randn(samples, steps, 4) if first else torch.randn(steps, samples, 4)
        given = (x, x, x) if kind is nn.MultiheadAttention else (x,)
        total = total + samples * layer(*given)[0].square().mean()
        count += samples
    torch.testing.assert_close(al2.penalty(), total / count)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: {"features": y}, "dict"),
        (lambda y: None, "NoneType"),
        (lambda y: y.argmax(1), "tensor of torch.int64"),
        (lambda y: y.to_sparse(), "sparse tensor"),
    ],
)
def test_a_layer_that_gives_no_tensor_is_refused_by_name(change, given):
    model = nn.Sequential(Gives(change))
    ActivationL2(model, "0")
    with pytest.raises(TypeError, match=f"'0', a Gives, gives a {given}"):
        model(torch.randn(3, 4))


def test_of_complex_activations_the_penalty_is_the_mean_of_their_squared_modulus():
    model = nn.Sequential(Gives(lambda y: torch.view_as_complex(y.reshape(-1, 2, 2))))
    al2 = ActivationL2(model, "0")
    z = model(torch.randn(3, 4))
    torch.testing.assert_close(al2.penalty(), z.abs().square().mean())
    with pytest.raises(ValueError, match="'0' has complex weights"):
        SparsityReg(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), {"0": 1.0})


def test_an_empty_batch_has_no_mean_and_is_said():
    model = nn.Sequential(nn.Linear(4, 4))
    al2 = ActivationL2(model, "0")
    mean, total = (SparsityReg(model, {"0": 1.0}, batch) for batch in losses.BATCHES)
    model(torch.zeros(0, 4))
    for penalty in (al2, mean):
        assert_nothing_to_read(penalty, "'0' has run on an empty batch")
    assert total.penalty().item() == 0
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        losses.activation_l2(torch.zeros(0, 4))


def test_a_single_image_is_one_sample_and_rows_are_no_filters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(64, 5))
    sparsity, image = SparsityReg(model, {"0": 1.0, "2": 1.0}), torch.randn(3, 6, 6)
    logits = model(image)
    found = sparsity.penalty()
    expected = -entropies(model[0](image).movedim(0, -1)).sum() - entropies(logits)
    torch.testing.assert_close(found, expected)
    cell = nn.Sequential(nn.GRUCell(3, 5))
    of_cell = ActivationL2(cell, "0")
    hidden = cell(torch.randn(3))
    torch.testing.assert_close(of_cell.penalty(), hidden.pow(2).mean())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_as_the_input_is_none_of_a_penalty_s_business():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, rows):
            return self.fc(torch.nested.to_padded_tensor(rows, 0.0))

    model = Padded()
    penalty = ActivationL2(model, "fc")
    output = model(torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]))
    torch.testing.assert_close(penalty.penalty(), output.pow(2).mean())


def test_what_a_sample_is_can_be_said_and_is_asked_for_where_it_cannot_be_told():
    windows = nn.Flatten(1), nn.Unflatten(1, (-1, 2, 4)), nn.Flatten(0, 1)  # two of each sample
    model = nn.Sequential(OrderedDict(fold=nn.Sequential(*windows), fc=nn.Linear(4, 5)))
    x = torch.randn(3, 4, 4)
    found = {s: SparsityReg(model, {"fc": 1.0}, samples=s) for s in (None, "input", 0, 1)}
    total = entropies(model(x)).sum()
    message = "'fc' gives 6 entries .* called with 3 samples; .*samples=0 .*samples='input'"
    assert_nothing_to_read(found[None], message)
    for samples, count in (("input", 3), (0, 6), (1, 2)):
        torch.testing.assert_close(found[samples].penalty(), -total / count)
    for wrong in ("rows", -1, True):
        with pytest.raises(ValueError, match="samples is"):
            ActivationL2(model, "fc", samples=wrong)
    SparsityReg(model, {"fc": 1.0}, samples=2)
    with pytest.raises(ValueError, match="samples is 2, but 'fc' gives"):
        model(x)


# ---- computed weights, compiled parts


COMPUTED = {
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "old weight norm": nn.utils.weight_norm,
    "new weight norm": parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize(
    "call", [lambda m, x: m(images=x), lambda m, x: m({"images": x})], ids=["by name", "mapping"]
)
def test_samples_are_counted_of_inputs_by_name_and_in_a_mapping(call):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 5)

        def forward(self, given=None, images=None):
            return self.fc((images if given is None else given["images"]).flatten(0, 1))

    model = Named()
    asked, told = (SparsityReg(model, {"fc": 1.0}, samples=s) for s in (None, "input"))
    logits = call(model, torch.randn(3, 2, 4))
    total = torch.distributions.Categorical(logits=logits).entropy().sum()
    torch.testing.assert_close(told.penalty(), -total / 3)
    with pytest.raises(RuntimeError, match="called with 3 samples"):
        asked.penalty()


def test_of_an_lstm_cell_the_first_of_the_tuple_is_measured():
    model = nn.Sequential(nn.LSTMCell(3, 5))
    al2 = ActivationL2(model, "0")
    hidden, _ = model(torch.randn(2, 3))
    torch.testing.assert_close(al2.penalty(), hidden.square().mean())


def test_a_layer_without_weights_before_its_first_pass_is_said():
    with pytest.raises(ValueError, match="no weight before its first pass"):
        DecorrReg(nn.Sequential(nn.LazyLinear(3)), {"0": 1.0}).penalty()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("penalty_first", [True, False])
def test_a_computed_weight_is_read_before_and_after_a_pass_and_left_as_it_was(make, penalty_first):
    model = nn.Sequential(make(nn.Conv2d(2, 4, 3)))
    decorr = DecorrReg(model, {"0": 1.0}, pairs="square")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    value = decorr.penalty().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert decorr.penalty().item() == value
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        terms = [decorr.penalty, lambda: model(images()).square().mean()]
        loss = sum(term() for term in (terms if penalty_first else terms[::-1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()


@pytest.mark.slow
def test_a_checkpoint_around_a_compiled_block_and_batches_of_other_sizes_count_once():
    torch._dynamo.reset()
    model, other = Net(reentrant=False), Net()
    model.block.compile(backend="aot_eager")
    penalties = attached(model)
    for seed, size in enumerate((4, 3, 5, 4)):
        logits = model(images(size, seed))
        found = read(penalties)
        (logits.sum() + sum(found)).backward()
        torch.testing.assert_close(found, list(by_hand(other, images(size, seed))[1:]))
        assert read(penalties)[0] is found[0]


def test_a_penalty_attached_after_a_compiled_pass_says_what_to_do():
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled(images()).sum().backward()
    al2 = ActivationL2(model, "block")
    compiled(images())
    assert_nothing_to_read(al2, r"'block' did not run.*torch\.compiler\.reset\(\)")
    torch.compiler.reset()
    compiled(images())
    torch.testing.assert_close(al2.penalty(), by_hand(model, images())[1])


@pytest.mark.parametrize("layers", [["block.0"], "block.0", {"block.0": "0.1"}])
def test_layers_have_to_be_a_mapping_to_numbers(layers):
    with pytest.raises(TypeError, match=r"layers is|has to be a number"):
        SparsityReg(Net(), layers)


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
    average = AveragedModel(model)
    for step in range(4):
        for part in range(2):
            x = images(3 + part, 2 * step + part)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
                with torch.no_grad():
                    model(9 * images(seed=99))
                    average(images(seed=99))
                found = read(penalties)
                plain, *expected = by_hand(other, x)
            (logits.logsumexp(1).sum() + sum(found)).backward()
            (plain.logsumexp(1).sum() + sum(expected)).backward()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(model, other, rtol=2e-2, atol=2e-3)
        average.update_parameters(model)
        with torch.no_grad():
            for parameter in (*model.parameters(), *other.parameters()):
                parameter -= 0.05 * parameter.grad
        other.load_state_dict(model.state_dict())  # rounding to bfloat16 shall not add up
        model.zero_grad()
        other.zero_grad()


ALONE = """
import sys
sys.modules["lib"] = None
import torch
from torch import nn
loaded = torch.load("model.pt", weights_only=False)
loaded(torch.ones(2, 3)).sum().backward()
import losses
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
penalties = losses.SparsityReg(model, {"0": 0.001}), losses.ActivationL2(model, "1")
model(torch.ones(2, 3, 8, 8))
logits = model(torch.randn(2, 3, 8, 8))
loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
(loss + sum(penalty.penalty() for penalty in penalties)).backward()
assert model[0].weight.grad.any()
print(losses.__file__)
"""


@pytest.mark.slow
def test_the_file_and_a_network_that_had_a_penalty_work_where_this_project_is_not_installed(
    tmp_path,
):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    ActivationL2(model, "1")
    model(torch.randn(2, 3))
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "losses.py").write_bytes(Path(losses.__file__).read_bytes())
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1"}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "losses.py")
