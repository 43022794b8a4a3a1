"""What older versions of torch do otherwise, and what takes its place."""

import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fba_mm import AmpLocalOptimWrapper, LocalLearningError, LocalShardedDataParallel
from fba_mm.compat import torch_versions
from fba_mm.compat.torch_versions import (
    GradScaler,
    autocast_dtype,
    autocasts_to,
    checkpointing_on_meta,
    give_deform_conv_shapes,
    is_autocast_enabled,
    is_resizable,
)

ROOT = Path(__file__).parents[2]


def test_sharding_is_refused_by_name_where_torch_cannot(monkeypatch):
    monkeypatch.setattr(torch_versions, 'fully_shard', None)
    with pytest.raises(
        LocalLearningError, match='install torch 2.6 or later, or set model_wrapper'
    ):
        LocalShardedDataParallel(torch.nn.Linear(1, 1))


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_on_meta(reentrant):
    x = torch.empty(2, 3, device='meta', requires_grad=True)
    with checkpointing_on_meta():
        out = checkpoint(torch.nn.Linear(3, 4, device='meta'), x, use_reentrant=reentrant)
    assert out.shape == (2, 4) and out.requires_grad
    assert not isinstance(getattr(torch, 'meta', None), SimpleNamespace)


def _new_autocast():
    """As torch 2.4 and later, by the functions of earlier versions."""
    return mock.patch.object(torch_versions, '_asks_by_device', lambda: False)


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.filterwarnings('ignore')
def test_autocast(old):
    with _new_autocast() if old else mock.MagicMock():
        assert not is_autocast_enabled('cpu')
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert is_autocast_enabled('cpu') and not is_autocast_enabled('cuda')
            assert autocast_dtype('cpu') == torch.bfloat16
        assert autocast_dtype('cuda') == torch.float16


def test_a_dtype_that_autocast_does_not_know(monkeypatch):
    assert autocasts_to('cpu', torch.bfloat16)
    assert not autocasts_to('cpu', torch.float64)
    assert autocasts_to('cpu', torch.float16) == (torch.__version__ >= (2, 2))
    monkeypatch.setattr('fba_mm.engine.local_optim_wrapper.autocasts_to', lambda *_: False)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(
        LocalLearningError, match="float16 on cpu: set optim_wrapper.dtype='bfloat16'"
    ):
        AmpLocalOptimWrapper(optimizer=sgd, dtype='float16')


def test_scaler():
    assert not GradScaler('cpu', enabled=False).is_enabled()
    assert GradScaler('cuda', enabled=False, init_scale=2.0).state_dict() == {}


def test_memory_of_others_is_not_resizable():
    array = torch.ones(3).numpy()
    assert is_resizable(torch.tensor([1.0, 2.0]).untyped_storage())
    assert not is_resizable(torch.from_numpy(array.copy()).untyped_storage())
    kept = torch.arange(4.0)
    assert is_resizable(kept.untyped_storage()) and kept.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_deformable_convolution_has_shapes():
    from torchvision.ops import deform_conv2d

    give_deform_conv_shapes()
    x, offset, weight = (
        torch.empty(shape, device='meta', requires_grad=True)
        for shape in ((2, 4, 6, 8), (2, 18, 3, 4), (5, 4, 3, 3))
    )
    out = deform_conv2d(x, offset, weight, stride=2, padding=1)
    assert out.shape == (2, 5, 3, 4)
    out.sum().backward()
    assert [t.grad.shape for t in (x, offset, weight)] == [x.shape, offset.shape, weight.shape]


def test_the_floor_is_stated_once():
    floor = re.search(r"'torch>=([\d.]+)'", (ROOT / 'setup.py').read_text()).group(1)
    assert (ROOT / 'noxfile.py').read_text().count(f'torch=={floor}.') >= 2
    for entry in re.findall(r'torch (2\.\d+)', Path(torch_versions.__file__).read_text()):
        assert tuple(map(int, entry.split('.'))) > tuple(map(int, floor.split('.'))), entry


def test_values_while_tensors_are_fake():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Seeing():
        with torch_versions.unset_fake_temporarily():
            assert torch.ones(2).tolist() == [1.0, 1.0] and seen
        assert isinstance(torch.ones(2), FakeTensor)
    assert type(torch.ones(2)) is torch.Tensor
