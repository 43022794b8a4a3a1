"""Local learning together with torch's and MMEngine's other ways to save memory and time."""

import pytest
import torch

from fba_mm import AmpLocalOptimWrapper
from fba_mm.analysis import StorageTracker

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer


def compile_blocks(model):
    for block in model.backbone.backbone.layer2:
        block.compile(backend='aot_eager')


def channels_last(model):
    model.to(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize('change', [compile_blocks, channels_last])
def test_gradients_are_the_same(change):
    expected = Trainer(build(retinanet())).gradients(batch())
    model = build(retinanet())
    change(model)
    gradients = Trainer(model).gradients(batch())
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-4 * float(gradient.abs().max()) + 1e-8
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=tolerance, msg=name)


def peak(cfg, **kwargs):
    trainer = Trainer(build(cfg), apply='eager', **kwargs)
    data = batch(128)
    trainer.step(data)
    with StorageTracker() as tracker:
        trainer.step(data)
    return tracker.peak


def test_checkpointing_within_modules_saves_more():
    settings = dict(depth=50, num_modules=2, base_channels=16, stem_channels=16)
    local = peak(retinanet(auxiliary=own_head(), **settings))
    both = peak(retinanet(auxiliary=own_head(), with_cp=True, **settings))
    assert both < 0.9 * local


def test_bfloat16_saves_more():
    cfg = retinanet(depth=50, base_channels=16, stem_channels=16, auxiliary=own_head())
    full = peak(cfg)
    half = peak(cfg, wrapper=AmpLocalOptimWrapper, dtype='bfloat16')
    assert half < 0.9 * full


def test_a_smaller_bank_saves_memory_and_trains():
    from fba_mm import FBAHook

    peaks = {}
    for dtype in (None, 'bfloat16'):
        trainer = Trainer(build(retinanet(auxiliary=own_head())), scope='all', apply='eager')
        trainer.hook.bank = FBAHook('all', bank_dtype=dtype).bank
        data = batch(128)
        trainer.step(data)
        with StorageTracker() as tracker:
            loss = trainer.step(data)['loss']
        peaks[dtype] = tracker.peak
        assert loss < 100
    assert peaks['bfloat16'] < peaks[None]
