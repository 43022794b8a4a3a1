"""Losses in slices against the stock ones."""

import copy
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from fba_mm import LocalLearningError
from fba_mm.analysis import StorageTracker

from ..conftest import build
from ..segmentation import labelled_batch, segmentor


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    # The package's attribute of this name is the function.
    monkeypatch.setattr(import_module('fba_mm.models.in_slices'), '_CPU_SLICE_BYTES', 4 * 7 * 5)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


LABELS = torch.tensor([0, 7, 7, 3, 2, 7, 6, 7, 1, 7, 7, 4, 5])
SHARES = (
    torch.rand(13, 7, generator=torch.Generator().manual_seed(1))
    * torch.nn.functional.one_hot(LABELS, 8)[:, :7]
)
WEIGHTS = torch.linspace(0, 2, 13)
LOSSES = {
    'FocalLoss': [(LABELS, WEIGHTS)],
    'QualityFocalLoss': [
        ((LABELS, SHARES.sum(1)), WEIGHTS),
        ((LABELS, SHARES.sum(1)), None),
        (SHARES, None),
    ],
    'VarifocalLoss': [(SHARES, None)],
}
CASES = [(name, *case) for name, cases in LOSSES.items() for case in cases]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'reduction',
    [dict(avg_factor=3.0), dict(), dict(reduction_override='sum'), dict(reduction_override='none')],
)
@pytest.mark.parametrize('name, target, weight', CASES)
def test_losses_of_rows(name, target, weight, reduction, dtype):
    stock = MODELS.build(dict(type=f'mmdet.{name}', loss_weight=0.7))
    sliced = MODELS.build(dict(type='InSlices', of=f'mmdet.{name}', loss_weight=0.7))
    assert name == 'FocalLoss' or isinstance(sliced, type(stock))
    found = []
    for loss in (stock, sliced):
        logits = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
        logits = (3 * logits).to(dtype).requires_grad_()
        with torch.autocast('cpu', enabled=dtype != torch.float32):
            value = loss(logits, target, weight, **reduction)
        (value * 1.3).sum().backward()
        found.append((value.float(), logits.grad.float()))
    if dtype == torch.float32:
        assert all(map(close, found[1], found[0]))
    else:
        assert all(torch.allclose(a, b, rtol=0.03, atol=0.03) for a, b in zip(*found))


def test_losses_of_rows_take_little_memory(monkeypatch):
    peaks = []
    for cfg in (dict(type='mmdet.QualityFocalLoss'), dict(type='InSlices', of='QualityFocalLoss')):
        loss = MODELS.build(cfg)
        logits = torch.randn(400, 7, requires_grad=True)
        labels = torch.full((400,), 7)
        labels[::9] = 1
        with StorageTracker() as tracker:
            loss(logits, (labels, torch.rand(400)), avg_factor=4.0).backward()
        peaks.append(tracker.peak / logits.nbytes)
    assert peaks[0] > 5 and peaks[1] < 2


def decode_head(**kwargs) -> dict:
    return dict(
        dict(
            type='FCNHead',
            in_channels=8,
            channels=8,
            num_classes=4,
            dropout_ratio=0.0,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
        ),
        **kwargs,
    )


def sliced(head: dict) -> dict:
    return dict(head, type='InSlices', of=head['type'])


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(align_corners=True),
        dict(
            loss_decode=[
                dict(type='CrossEntropyLoss', avg_non_ignore=True),
                dict(type='CrossEntropyLoss', loss_name='loss_other'),
                dict(type='CrossEntropyLoss'),
            ]
        ),
    ],
)
@pytest.mark.parametrize('size', [(9, 7), (16, 16), (64, 64)])
def test_decode_heads(size, kwargs):
    head = decode_head(**kwargs)
    samples = labelled_batch(size=(64, 64))['data_samples']
    found = []
    with DefaultScope.overwrite_default_scope('mmseg'):
        for cfg in (head, sliced(head)):
            model = build(cfg)
            x = torch.rand(2, 8, *size, generator=torch.Generator().manual_seed(2)).requires_grad_()
            losses = model.loss([x], samples, None)
            sum(v for k, v in losses.items() if k.startswith('loss')).backward()
            found.append([*losses.values(), x.grad, *(p.grad for p in model.parameters())])
            assert list(losses) == list(model.loss([x], samples, None))
        assert isinstance(model, type(build(head)))
    assert all(map(close, found[1], found[0]))


def test_a_segmentor_takes_less_memory_and_trains_the_same():
    cfg = segmentor(None, kind='UPerHead')
    both = copy.deepcopy(cfg)
    both['decode_head'] = dict(sliced(cfg['decode_head']), of='UPerHead')
    both['auxiliary_head'] = sliced(cfg['auxiliary_head'])
    data, found = labelled_batch(size=(128, 128)), []
    with DefaultScope.overwrite_default_scope('mmseg'):
        for settings in (cfg, both):
            model = build(settings)
            prepared = model.data_preprocessor(data, True)
            with StorageTracker() as tracker:
                losses = model(**prepared, mode='loss')
                model.parse_losses(losses)[0].backward()
            found.append((tracker.peak, losses, [p.grad for p in model.parameters()]))
    assert found[1][1].keys() == found[0][1].keys()
    assert all(close(found[1][1][k], v) for k, v in found[0][1].items())
    for a, b in zip(found[1][2], found[0][2]):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max()) + 1e-8)
    assert found[1][0] < 0.9 * found[0][0]


def test_a_mask_head(monkeypatch):
    """The same masks and gradients, each parameter's in one part, in less than half the memory."""
    kwargs = dict(num_convs=4, in_channels=8, conv_out_channels=8, num_classes=2)
    stock = MODELS.build(dict(type='mmdet.FCNMaskHead', **kwargs))
    stock.init_weights()
    sliced = MODELS.build(dict(type='InSlices', of='mmdet.FCNMaskHead', **kwargs))
    assert isinstance(sliced, type(stock))
    sliced.load_state_dict(stock.state_dict(), strict=True)
    rois = torch.randn(130, 8, 14, 14, generator=torch.Generator().manual_seed(0)).double()
    found, peaks, parts = [], [], []
    for head in (stock.double(), sliced.double()):
        x = rois.clone().requires_grad_()
        handles = [p.register_post_accumulate_grad_hook(parts.append) for p in head.parameters()]
        tracker = StorageTracker()
        with tracker:
            masks = head(x)
            masks.square().mean().backward()
        for handle in handles:
            handle.remove()
        assert len(parts) == len(handles)
        parts.clear()
        peaks.append(tracker.peak)
        found.append([masks, x.grad, *(p.grad for p in head.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert peaks[1] < 0.5 * peaks[0]
    with torch.no_grad():
        assert torch.equal(sliced(rois), stock(rois))
    with pytest.raises(LocalLearningError, match='no loss that can be computed in slices'):
        MODELS.build(
            dict(type='InSlices', of='mmdet.FCNMaskHead', norm_cfg=dict(type='BN'), **kwargs)
        )


def test_targets_of_a_mask_head():
    """The same bits from fewer copies of masks, of images with RoIs and without."""
    kwargs = dict(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2)
    stock = MODELS.build(dict(type='mmdet.FCNMaskHead', **kwargs))
    sliced = MODELS.build(dict(type='InSlices', of='mmdet.FCNMaskHead', **kwargs))
    generator = torch.Generator().manual_seed(0)
    results, instances = [], []
    for rois in (20, 1, 0):
        masks = torch.randint(0, 2, (3, 800, 1300), generator=generator, dtype=torch.uint8)
        instances.append(InstanceData(masks=BitmapMasks(masks.numpy(), 800, 1300)))
        corner = torch.rand(rois, 2, generator=generator) * 600
        boxes = torch.cat([corner, corner + 20 + 100 * torch.rand(rois, 2, generator=generator)], 1)
        results.append(
            SimpleNamespace(
                pos_priors=boxes,
                pos_assigned_gt_inds=torch.randint(0, 3, (rois,), generator=generator),
            )
        )
    cfg = ConfigDict(mask_size=28)
    found, peaks = [], []
    for head in (stock, sliced):
        with StorageTracker() as tracker:
            found.append(head.get_targets(results, instances, cfg))
        peaks.append(tracker.peak)
    assert torch.equal(*found)
    assert 0.1 < found[0].mean() < 0.9
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize(
    'cfg',
    [
        dict(of='mmdet.L1Loss'),
        dict(of='mmdet.FocalLoss', activated=True),
        sliced(decode_head(sampler=dict(type='OHEMPixelSampler', thresh=0.7))),
        sliced(decode_head(loss_decode=dict(type='DiceLoss'))),
        sliced(
            decode_head(
                loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 1.0, 1.0])
            )
        ),
    ],
)
def test_what_has_no_slices(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(
        LocalLearningError, match='InSlices'
    ):
        MODELS.build(dict(cfg, type='InSlices'))
