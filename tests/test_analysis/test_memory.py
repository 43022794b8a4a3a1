import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from fba_mm.analysis import memory
from fba_mm.analysis.memory import StorageTracker, mark, measure_step
from fba_mm.errors import LocalLearningError

KIB = 1024  # the bytes of the 256 float32 numbers that most tensors here have


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=['announced', 'polled'])
def both_ways(request, monkeypatch):
    """Of learning that a storage has died: that of torch 2.0 as well."""
    if request.param == 'polled':
        monkeypatch.setattr(memory, '_deaths_are_announced', lambda: False)


def numbers(requires_grad=False) -> Tensor:
    return torch.linspace(0.1, 1.0, 256, requires_grad=requires_grad)


class Pair(Tensor):
    """Two tensors that go through every op together."""

    @staticmethod
    def __new__(cls, left, right):
        return Tensor._make_wrapper_subclass(cls, left.shape, dtype=left.dtype)

    def __init__(self, left, right):
        self.left, self.right = left, right
        self.place = 'no tensor'  # As a DTensor's device mesh.

    def __tensor_flatten__(self):
        return ['left', 'right', 'place'], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(func(args[0].left, *args[1:]), func(args[0].right, *args[1:]))


def peak_at_the_allocator(step) -> int:
    """The most bytes that the CPU allocator had handed out while the step ran without any mode."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]'
    ]
    assert events
    allocated = np.cumsum([event.nbytes() for event in events])
    return int(allocated.max())


@pytest.mark.usefixtures('both_ways')
class TestWhatCounts:
    def test_a_new_tensor_counts_its_bytes_until_it_dies(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
            b = torch.ones(3, dtype=torch.int64)
            assert tracker.current == 40 + 24
            del a
            assert tracker.current == 24
            del b
            assert tracker.current == 0
        assert tracker.peak == 64

    def test_deaths_after_the_context_are_noticed(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
        assert tracker.current == 40
        del a
        assert tracker.current == 0
        assert tracker.peak == 40

    def test_freed_memory_is_not_in_a_later_peak(self):
        with StorageTracker() as tracker:
            for _ in range(5):
                torch.ones(10)
        assert tracker.peak == 40

    def test_what_was_there_before_costs_nothing(self):
        parameter = nn.Parameter(torch.ones(10))
        with StorageTracker() as tracker:
            with torch.no_grad():
                parameter.add_(1).mul_(2)
            views = [parameter.view(2, 5), parameter[1:], parameter.detach(), parameter.data]
            torch._foreach_add_([parameter.data], 1.0)
            assert tracker.current == tracker.peak == 0
        assert len(views) == 4

    def test_views_and_aliases_count_once(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
            views = [a.view(2, 5), a[3:], a.t(), a.expand(7, 10), a.detach(), a.data, a.unbind()]
            assert tracker.current == 40
            del a
            assert tracker.current == 40  # its views hold the storage
            del views
            assert tracker.current == 0
        assert tracker.peak == 40

    def test_in_place_ops_cost_nothing(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
            a.add_(1).relu_()
            a[2:4] = a[5:7]
            torch.exp(a, out=a)
            F.relu(a, inplace=True)
        assert tracker.peak == 40

    def test_half_the_bytes_in_bfloat16(self):
        def peak(dtype):
            x = torch.ones(64, dtype=dtype)
            with StorageTracker() as tracker:
                x.exp().sin().cos()
            return tracker.peak

        assert peak(torch.float32) == 2 * 64 * 4
        assert peak(torch.bfloat16) == 64 * 4

    def test_resized_storages_count_their_new_size(self):
        before = torch.empty(0)
        with StorageTracker() as tracker:
            a = torch.ones(10)
            a.resize_(20)
            assert tracker.current == 80
            b = torch.empty(0)
            torch.exp(a, out=b)
            assert tracker.current == 160
            torch.exp(a, out=before)
            assert tracker.current == 240
            before.resize_(30)
            assert tracker.current == 280
            del a, b, before
            assert tracker.current == 0

    def test_python_data_counts_and_shared_numpy_memory_does_not(self):
        with StorageTracker() as tracker:
            a = torch.tensor([1.0, 2.0, 3.0])
            assert tracker.current == 12
            b = torch.from_numpy(np.ones(100))
            c = b.view(10, 10)
            assert tracker.current == 12
        assert len(a) + len(b) + len(c) == 113

    def test_several_results_of_one_op(self):
        x = torch.ones(4, 8)
        with StorageTracker() as tracker:
            values, indices = x.max(dim=1)
            copies = torch._foreach_add([x, x], 1.0)
        assert tracker.current == 4 * 4 + 4 * 8 + 2 * 128
        assert len(values) == len(indices) == 4 and len(copies) == 2

    def test_sparse_gradients(self):
        embedding = nn.Embedding(100, 4, sparse=True)
        with StorageTracker() as tracker:
            embedding(torch.tensor([3, 5])).sum().backward()
        assert embedding.weight.grad.is_sparse
        # two indices of 8 bytes, two rows of 4 numbers
        assert tracker.current == 2 * 8 + 2 * 4 * 4

    def test_a_subclass_counts_what_it_wraps(self):
        with StorageTracker() as tracker:
            a = Pair(torch.ones(10), torch.ones(10))
            assert tracker.current == 80
            b = a + 1
            assert tracker.current == 160
            del a, b
            assert tracker.current == 0

    def test_a_layout_without_storage_is_refused(self):
        refused = pytest.raises(LocalLearningError, match='layout torch._mkldnn')
        with refused, StorageTracker():
            torch.ones(4).to_mkldnn()


@pytest.mark.usefixtures('both_ways')
class TestTrainingStep:
    def test_linear_chain_byte_for_byte(self):
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        x = torch.ones(4, 8)
        with StorageTracker() as tracker:
            loss = net(x).sum()
            # hidden is 4x16 numbers. Before ReLU and after are alive together; autograd keeps the
            # latter, for ReLU and for the second layer, which counts once.
            hidden = 4 * 16 * 4
            assert tracker.peak == hidden + max(hidden, 4 * 2 * 4 + 4)
            assert tracker.current == hidden + 4

            tracker.reset_peak()
            loss.backward()
            # Most is alive when the first layer has its gradients:
            assert tracker.peak == sum(
                [
                    4,  # the loss
                    4,  # the gradient of the loss, which the sum's backward expands to a view
                    16 * 2 * 4,
                    2 * 4,  # the gradients of the second layer
                    hidden,  # the gradient before ReLU; that after it and `hidden` itself are gone
                    8 * 16 * 4,
                    16 * 4,  # the gradients of the first layer
                ]
            )
            # The parameters' gradients and the loss stay.
            gradients = (8 * 16 + 16 + 16 * 2 + 2) * 4
            assert tracker.current == gradients + 4

            net.zero_grad()
            assert tracker.current == 4
            del loss
            assert tracker.current == 0

    def test_gradients_accumulate_in_place(self):
        net, x = nn.Linear(8, 8, bias=False), torch.ones(4, 8)
        with StorageTracker() as tracker:
            for _ in range(3):
                net(x).sum().backward()
                assert tracker.current == 8 * 8 * 4

    def test_what_autograd_saves_counts_until_backward(self):
        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            y = (x * 2).exp().sum()
            assert tracker.current == KIB + 4  # exp keeps its result, x * 2 isn't kept
            y.backward()
            assert tracker.current == KIB + 4  # the gradient of x
            x.grad = None
            assert tracker.current == 4

    def test_a_retained_graph_stays(self):
        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            y = x.exp().sum()
            y.backward(retain_graph=True)
            assert tracker.current == 2 * KIB + 4
            del y
            assert tracker.current == KIB

    def test_save_for_backward_of_a_custom_function(self):

        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                square = x * x
                ctx.save_for_backward(square)
                return square * x

            @staticmethod
            def backward(ctx, grad):
                (square,) = ctx.saved_tensors
                return 3 * square * grad

        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            y = Cube.apply(x)
            assert tracker.current == 2 * KIB
            tracker.reset_peak()
            y.backward(torch.ones_like(y))
            # y, its gradient, the square, 3 * square and the product are alive together
            assert tracker.peak == 5 * KIB
            assert tracker.current == 2 * KIB  # y and the gradient of x

    @pytest.mark.parametrize('somebody_keeps_it', [False, True])
    def test_where_gradients_meet(self, somebody_keeps_it):
        x, kept = numbers(requires_grad=True), []
        with StorageTracker() as tracker:
            y = x.clone()
            z = y + y * 2
            if somebody_keeps_it:
                z.register_hook(kept.append)
            loss = z.exp().sum()
            del y, z
            tracker.reset_peak()
            loss.backward()
        # The gradient of z reaches y as it is and doubled. The sum of both is written over the
        # former, if nobody else has it.
        assert tracker.peak == (3 if somebody_keeps_it else 2) * KIB + 4 + 4

    def test_in_python_a_sum_takes_new_memory(self):

        class Twice(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x

            @staticmethod
            def backward(ctx, grad):
                return grad.clone() + grad

        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            y = Twice.apply(x)
            y.backward(torch.ones_like(y))
        assert tracker.peak == 4 * KIB  # y, its gradient, the clone and the sum

    def test_backward_inside_the_forward(self):
        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            for _ in range(6):
                y = (x.exp() * 2).exp()
                y.sum().backward()
                x = y.detach().requires_grad_()
                del y
            assert tracker.current == KIB  # x
        # x, its exp, the exp of that doubled, which is y, and two gradients on the way down;
        # the last round's gradient went with its x.
        assert tracker.peak == 5 * KIB + 4 + 4

    @pytest.mark.parametrize('use_reentrant', [False, True])
    def test_checkpointing_lowers_the_peak(self, use_reentrant):

        def four_exps(x):
            for _ in range(4):
                x = (-x).exp()
            return x

        def plain(x):
            return four_exps(four_exps(x)).sum()

        def checkpointed(x):
            for _ in range(2):
                x = checkpoint(four_exps, x, use_reentrant=use_reentrant)
            return x.sum()

        peaks = []
        for forward in (plain, checkpointed):
            x = numbers(requires_grad=True)
            with StorageTracker() as tracker:
                forward(x).backward()
            peaks.append(tracker.peak)
        # What exp keeps: 8 results, or the one between the two parts and 4 that are made anew. Then
        # the gradient that comes in at exp is a view, its result is a tensor, and the kept result
        # goes before the next gradient is made, unless the variable in the reentrant form holds it.
        kept = 1 + 4
        gradients = 2 if use_reentrant else 1
        the_loss_and_its_gradient = 4 + 4
        assert peaks == [
            (8 + 1) * KIB + the_loss_and_its_gradient,
            (kept + gradients) * KIB + the_loss_and_its_gradient,
        ]

    def test_the_cache_of_autocast_counts(self):
        linear = nn.Linear(64, 64, bias=False)
        x = torch.ones(4, 64, dtype=torch.bfloat16)
        with StorageTracker() as tracker:
            with torch.autocast('cpu', dtype=torch.bfloat16):
                linear(x), linear(x)
                assert tracker.current == 64 * 64 * 2
            assert tracker.current == 0

    def test_optimizer_state_counts_when_it_is_made(self):
        net = nn.Linear(8, 8, bias=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net.weight.grad = torch.ones(8, 8)
        with StorageTracker() as tracker:
            optimizer.step()
            assert tracker.current == 8 * 8 * 4
            optimizer.step()
            assert tracker.current == 8 * 8 * 4


class TestAgainstTheAllocator:
    """The peak is that of a step without the tracker, although a mode changes autograd's ways."""

    @staticmethod
    def residual(x):
        for _ in range(3):
            x = x + (x * 2).sigmoid()
        return x

    @staticmethod
    def gather(x):
        return (x * 2).view(16, -1).gather(1, torch.zeros(16, 1, dtype=torch.int64))

    @staticmethod
    def maximum(x):
        return (x * 2).view(16, -1).max(dim=1)[0]

    @staticmethod
    def top_values(x):
        return (x * 2).view(16, -1).topk(3, dim=1)[0]

    @staticmethod
    def checkpointed(x):
        for _ in range(3):
            # The random state that it would keep is made without an op.
            x = checkpoint(
                TestAgainstTheAllocator.residual, x, use_reentrant=False, preserve_rng_state=False
            )
        return x

    @staticmethod
    def used_by_three(x):
        y = x * 2
        return y.exp() * y.sin() + y.cos()

    @pytest.mark.parametrize(
        'forward', ['residual', 'gather', 'maximum', 'top_values', 'checkpointed', 'used_by_three']
    )
    def test_same_peak(self, forward):
        forward = getattr(self, forward)
        x = torch.linspace(0.1, 1.0, 2**16, requires_grad=True)

        def step():
            forward(x).sum().backward()
            x.grad = None

        step()
        expected = peak_at_the_allocator(step)
        with StorageTracker() as tracker:
            step()
        # Ops make small tensors of the Python numbers that they are given, and free them unseen.
        assert expected - 512 <= tracker.peak <= expected

    def test_the_correction_is_needed(self, monkeypatch):
        """Or the tests above would show nothing."""
        x = torch.linspace(0.1, 1.0, 2**16, requires_grad=True)
        monkeypatch.setattr(memory, '_IN_PLACE_WITHOUT_A_MODE', frozenset())
        expected = peak_at_the_allocator(lambda: self.gather(x).sum().backward())
        x.grad = None
        with StorageTracker() as tracker:
            self.gather(x).sum().backward()
        assert tracker.peak > expected + 2**17


@pytest.mark.usefixtures('both_ways')
class TestLifetimes:
    def test_nothing_is_kept_alive(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
            tensor, storage = weakref.ref(a), a.untyped_storage()._cdata
            assert storage in tracker._live
            del a
            assert tensor() is None
            assert tracker.current == 0
            assert not tracker._live

    def test_cycles_count_until_they_are_collected(self):

        class Node:
            pass

        gc.disable()
        try:
            with StorageTracker() as tracker:
                node = Node()
                node.self, node.tensor = node, torch.ones(10)
                del node
                assert tracker.current == 40
                gc.collect()
                assert tracker.current == 0
        finally:
            gc.enable()

    def test_a_collection_at_any_moment(self):
        threshold, collections = gc.get_threshold(), []
        gc.set_threshold(1)
        gc.callbacks.append(lambda phase, info: collections.append(phase))
        try:
            with StorageTracker() as tracker:
                for _ in range(20):
                    cycle = [torch.ones(10)]
                    cycle.append(cycle)
        finally:
            gc.callbacks.pop()
            gc.set_threshold(*threshold)
        assert collections
        assert 40 <= tracker.current <= 20 * 40
        del cycle
        gc.collect()
        assert tracker.current == 0

    def test_a_tracker_dies_before_what_it_followed(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
        gone = weakref.ref(tracker)
        del tracker
        gc.collect()
        assert gone() is None
        assert a.sum() == 10

    def test_nested_trackers_have_accounts_of_their_own(self):
        with StorageTracker() as outer:
            a = torch.ones(10)
            with StorageTracker() as inner:
                b = torch.ones(5)
                a.add_(1)
                assert (outer.current, inner.current) == (60, 20)
                del a
                assert (outer.current, inner.current) == (20, 0 + 20)
            c = torch.ones(100)
        assert (outer.current, inner.current) == (420, 20)
        assert (outer.peak, inner.peak) == (420, 20)
        assert len(b) + len(c) == 105

    def test_entered_again_it_goes_on(self):
        tracker = StorageTracker()
        with tracker:
            a = torch.ones(10)
        b = torch.ones(10)
        with tracker, tracker:
            c = torch.ones(10)
        assert tracker.current == 80
        assert len(a) + len(b) + len(c) == 30

    def test_an_exception_leaves_no_mode_behind(self):
        tracker = StorageTracker()
        with pytest.raises(RuntimeError, match='size of tensor'), tracker:
            torch.ones(3) + torch.ones(4)
        gc.collect()
        a = torch.ones(10)
        assert tracker.current == 0
        assert not memory._under_way
        assert len(a) == 10


class TestWatch:
    def test_modules_optimizers_and_tensors(self):
        net = nn.BatchNorm1d(8)  # 2 parameters and 2 buffers of 8 numbers, 1 counter of 8 bytes
        net.weight.grad = torch.ones(8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer.step()  # makes the momentum of the weight
        x = torch.ones(3)
        tracker = StorageTracker()
        assert tracker.watch(net) == 4 * 32 + 8 + 32
        assert tracker.watch({'state': [optimizer]}, (x, x)) == 32 + 12
        assert tracker.watch(net, x[1:]) == 0
        assert tracker.current == tracker.peak == 212
        net.zero_grad()
        assert tracker.current == 180
        assert tracker.peak == 212

    def test_what_cannot_be_watched(self):
        with pytest.raises(LocalLearningError, match="can't watch a str: give tensors"):
            StorageTracker().watch('weights')


class TestTimeline:
    def test_one_sample_per_change(self):
        with StorageTracker() as tracker:
            a = torch.ones(10)
            a.add_(1)
            b = torch.ones(5)
            tracker.mark('half')
            del a
            c = torch.ones(1)
        seconds, nbytes = zip(*tracker.timeline)
        assert nbytes == (0, 40, 60, 24)
        assert list(seconds) == sorted(seconds) and seconds[0] >= 0
        ((name, moment),) = tracker.marks
        assert name == 'half'
        assert seconds[2] <= moment <= seconds[3]
        assert len(b) + len(c) == 6

    def test_it_begins_with_all_that_is_watched(self):
        tracker = StorageTracker()
        x, y = torch.ones(1), torch.ones(2)
        tracker.watch(x)
        tracker.watch(y)
        with tracker:
            pass
        assert [nbytes for _, nbytes in tracker.timeline] == [12]

    def test_its_highest_point_is_the_peak(self):
        x = numbers(requires_grad=True)
        with StorageTracker() as tracker:
            TestAgainstTheAllocator.checkpointed(x).sum().backward()
        nbytes = [count for _, count in tracker.timeline]
        assert max(nbytes) == tracker.peak
        assert nbytes[-1] == tracker.current == KIB
        assert len(nbytes) > 20

    def test_the_peak_of_a_phase(self):
        with StorageTracker() as tracker:
            torch.ones(100)
            a = torch.ones(10)
            tracker.reset_peak()
            assert tracker.peak == 40
            b = torch.ones(10)
        assert tracker.peak == 80
        assert len(a) + len(b) == 20

    def test_marks_reach_all_that_measure_and_need_none(self):
        mark('nobody listens')
        with StorageTracker() as outer, StorageTracker() as inner:
            mark('forward')
        assert [name for name, _ in outer.marks] == [name for name, _ in inner.marks] == ['forward']


class TestMeasureStep:
    def test_on_the_cpu(self):
        net = nn.Linear(8, 8, bias=False)
        x = torch.ones(4, 8)

        def step():
            loss = net(x).sum()
            mark('backward')
            loss.backward()
            net.zero_grad()

        found = measure_step(step)
        assert found.baseline == 0
        assert found.peak_bytes == 8 * 8 * 4 + 4 + 4  # the weight's gradient, the loss and its own
        assert max(nbytes for _, nbytes in found.timeline) == found.peak_bytes
        assert found.timeline[-1][1] == 0
        ((name, moment),) = found.marks
        assert name == 'backward' and 0 < moment < found.seconds
        assert found.timeline[-1][0] <= found.seconds

    def test_watched_gradients_lower_the_line_when_freed(self):
        net = nn.Linear(8, 8, bias=False)
        net.weight.grad = torch.ones(8, 8)

        def step():
            net.zero_grad()
            torch.ones(1)

        found = measure_step(step, watch=net)
        assert found.baseline == 2 * 8 * 8 * 4
        assert found.peak_bytes == 0
        assert [nbytes for _, nbytes in found.timeline] == [0, 4 - 8 * 8 * 4, -8 * 8 * 4]

    def test_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        with pytest.raises(LocalLearningError, match="measure with device='cpu'"):
            measure_step(lambda: None, device='cuda')

    @pytest.mark.parametrize('device', ['meta', 'gpu'])
    def test_other_devices_are_refused(self, device):
        with pytest.raises(LocalLearningError, match=f"{device}.*: give 'cpu' or 'cuda'"):
            measure_step(lambda: None, device=device)


class TestOnCuda:
    """With the CPU's account in the allocator's place, so that it is checked on any machine."""

    @pytest.fixture
    def allocator(self, monkeypatch):
        tracker = StorageTracker()
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)

        def memory_allocated(device):
            tracker.times_asked += 1
            return tracker.current

        tracker.times_asked = 0
        monkeypatch.setattr(torch.cuda, 'memory_allocated', memory_allocated)
        monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: tracker.peak)
        monkeypatch.setattr(
            torch.cuda, 'reset_peak_memory_stats', lambda device: tracker.reset_peak()
        )
        with tracker:
            yield tracker

    def test_peak_and_timeline_above_what_was_there(self, allocator):
        torch.ones(1000)  # an earlier peak
        kept = torch.ones(100)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        parameters = (8 * 16 + 16 + 16 * 2 + 2) * 4
        x = torch.ones(4, 8)

        def step():
            loss = net(x).sum()
            mark('backward')
            loss.backward()

        found = measure_step(step, device='cuda')
        assert found.baseline == 400 + parameters + 128
        assert found.peak_bytes == allocator.peak - found.baseline == 976
        assert [name for name, _ in found.marks] == ['backward']
        # Forward: the start, before and after all four modules; backward: at all four outputs; end.
        backward_at = found.marks[0][1]
        forward = [nbytes for moment, nbytes in found.timeline if moment < backward_at]
        hidden = 256
        assert forward == [0, 0, 0, hidden, hidden, 2 * hidden, hidden, hidden + 32, hidden + 32]
        assert len(found.timeline) == 9 + 4 + 1
        assert found.timeline[-1][1] == parameters
        assert len(kept) == 100

    def test_no_hook_stays(self, allocator):
        net = nn.Linear(8, 8)
        outputs = []

        def fail():
            outputs.append(net(torch.ones(1, 8)))
            raise RuntimeError('broken step')

        with pytest.raises(RuntimeError, match='broken step'):
            measure_step(fail, device='cuda')
        hooks = nn.modules.module
        assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks
        assert memory._under_way == [allocator]
        allocator.times_asked = 0
        outputs[0].sum().backward()
        assert allocator.times_asked == 0
