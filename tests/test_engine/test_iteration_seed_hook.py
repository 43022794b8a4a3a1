"""Stopped after any iteration and resumed is never stopped, whatever is drawn at random."""

import gc
import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, Dataset, RandomSampler

from fba_mm import LocalLearningError
from fba_mm.engine import IterationSeedHook
from fba_mm.engine.iteration_seed_hook import add_iteration_seeds
from fba_mm.engine.seeded_batches import SeededBatches

from ..conftest import needs_float16
from ..test_tools.in_process import untouched_process

IMAGES, BATCH = 10, 2


@pytest.fixture(autouse=True)
def _workers_end_soon():
    """Persistent workers of a loader that is gone are waited for five seconds each."""
    with mock.patch('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.2):
        yield
        gc.collect()


class Augmented(Dataset):
    """Samples that draw from all generators, as pipelines do."""

    metainfo: dict = {}

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        draws = random.random(), np.random.rand(), float(torch.rand(()))
        return dict(inputs=torch.tensor([index, *draws]))


@DATA_SAMPLERS.register_module()
class EvenFirst(BatchSampler):
    """Batches of images that are alike, as mmdet's ``AspectRatioBatchSampler`` makes them."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, False)

    def __iter__(self):
        indices = sorted(self.sampler, key=lambda index: index % 2)
        yield from (indices[i : i + BATCH] for i in range(0, IMAGES, BATCH))


class Dropping(BaseModel):
    """A model that draws in its forward pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs, mode='tensor'):
        noise = random.random() + np.random.rand()
        out = nn.functional.dropout(self.layer(torch.stack(inputs)), 0.5) + noise
        return dict(loss=out.square().mean())


class Spy(Hook):
    """Notes what each iteration was given, and what came of it."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.seen = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen[runner.iter] = (
            batch_idx,
            torch.stack(data_batch['inputs']).tolist(),
            float(outputs['loss']),
        )


def train(
    work_dir,
    resume=None,
    loop='epoch',
    sampler=DefaultSampler,
    batch_sampler=None,
    optim_wrapper=None,
    custom_hooks=(),
    save=1,
    **dataloader,
):
    """Three passes over the data; saved after each iteration."""
    spy = Spy()
    by_epoch = loop == 'epoch'
    steps = 3 * IMAGES // BATCH
    loops = dict(
        epoch=dict(by_epoch=True, max_epochs=3),
        iteration=dict(by_epoch=False, max_iters=steps, val_interval=100),
    )
    loader = dict(num_workers=0, persistent_workers=False, batch_size=BATCH, dataset=Augmented())
    loader.update(dataloader)
    if sampler is RandomSampler:
        loader['sampler'] = sampler(loader['dataset'])
    else:
        loader['sampler'] = dict(type=sampler.__name__, shuffle=True)
    if batch_sampler:
        loader['batch_sampler'] = dict(type=batch_sampler)
    with untouched_process(), torch.random.fork_rng():
        # A process of its own has generators in another state.
        torch.manual_seed(random.SystemRandom().randrange(2**32))
        if resume is None:
            torch.manual_seed(0)
        model = Dropping()
        runner = Runner(
            model,
            str(work_dir),
            train_dataloader=loader,
            train_cfg=loops[loop],
            optim_wrapper=dict(
                dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)), **(optim_wrapper or {})
            ),
            param_scheduler=dict(type='MultiStepLR', milestones=[1, 2], by_epoch=by_epoch),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=save), logger=None
            ),
            custom_hooks=[dict(type='IterationSeedHook'), *custom_hooks, spy],
            resume=resume is not None,
            load_from=None if resume is None else str(resume),
            log_level='ERROR',
            experiment_name=str(work_dir),
        )
        runner.train()
    return SimpleNamespace(seen=spy.seen, weights=model.state_dict(), runner=runner)


VARIANTS = {
    'by epoch': {},
    'two workers': dict(num_workers=2),
    'persistent workers': dict(num_workers=2, persistent_workers=True),
    "torch's sampler": dict(sampler=RandomSampler),
    'a batch sampler': dict(batch_sampler='EvenFirst'),
    'by iteration': dict(loop='iteration', sampler=InfiniteSampler),
    'by iteration, two workers': dict(loop='iteration', sampler=InfiniteSampler, num_workers=2),
    'by iteration, passes': dict(loop='iteration'),
    'EMA': dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)]),
    'bfloat16': dict(optim_wrapper=dict(type='AmpLocalOptimWrapper', dtype='bfloat16')),
    'accumulation': dict(optim_wrapper=dict(accumulative_counts=3)),
    'accumulation, float16': dict(
        optim_wrapper=dict(type='AmpLocalOptimWrapper', dtype='float16', accumulative_counts=3)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    'variant',
    [pytest.param(name, marks=[needs_float16] * ('float16' in name)) for name in VARIANTS],
)
def test_stopped_anywhere(variant, tmp_path):
    """In the middle of an epoch, at its end, at its start."""
    settings = VARIANTS[variant]
    whole = train(tmp_path / 'whole', **settings)
    assert sorted(whole.seen) == list(range(15))
    draws = [sample for _, batch, _ in whole.seen.values() for sample in batch]
    assert len({tuple(sample[1:]) for sample in draws}) == len(draws) == 30
    for stop in (2, 5, 8) if settings.get('num_workers') is None else (8,):
        again = train(
            tmp_path / f'resumed_{stop}',
            tmp_path / 'whole' / f'iter_{stop}.pth',
            save=100,
            **settings,
        )
        assert again.seen == {i: row for i, row in whole.seen.items() if i >= stop}, stop
        for name, tensor in whole.weights.items():
            assert torch.equal(tensor, again.weights[name]), (stop, name)


def test_other_data_starts_the_epoch_anew(tmp_path):
    train(tmp_path / 'whole', save=7)
    with mock.patch.object(Augmented, '__len__', lambda self: 8), mock.patch(
        'mmengine.logging.MMLogger.warning'
    ) as warning:
        again = train(tmp_path / 'less', tmp_path / 'whole/iter_7.pth', save=100)
    (said,) = [call.args[0] for call in warning.call_args_list if 'batches' in call.args[0]]
    assert said.startswith(
        'the checkpoint was saved after 2 of 5 batches of an epoch, now there are 4'
    )
    assert [again.seen[i][0] for i in sorted(again.seen)] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda c: c['message_hub']['runtime_info'].update(batch_in_epoch='two'), "in_epoch='two'"),
        (lambda c: c['message_hub']['runtime_info'].update(sampler_seed=-1), 'sampler_seed=-1'),
        (lambda c: c.update(gradients={'layer.weight': torch.ones(1)}), 'gradients are not those'),
        (lambda c: c.update(gradients=[1]), 'gradients are not those'),
    ],
)
def test_a_place_or_gradients_that_were_tampered_with(spoil, words, tmp_path):
    train(tmp_path / 'whole', save=7)
    checkpoint = torch.load(tmp_path / 'whole/iter_7.pth', weights_only=False)
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / 'x.pth')
    with pytest.raises(LocalLearningError, match=words):
        train(tmp_path / 'again', tmp_path / 'x.pth')


def test_the_hook_named_twice(tmp_path):
    """FBAHook is one, too."""
    twice = dict(custom_hooks=[dict(type='IterationSeedHook')])
    whole = train(tmp_path / 'whole', save=7)
    again = train(tmp_path / 'again', tmp_path / 'whole/iter_7.pth', save=100, **twice)
    assert again.seen == {i: row for i, row in whole.seen.items() if i >= 7}


def draws_by_image(samplers):
    """What is drawn for each image by processes with one of these samplers each."""
    drawn = {}
    for sampler in samplers:
        batches = SeededBatches(BatchSampler(sampler, BATCH, False), 5, lambda: 1)
        drawn.update((index, random.random()) for batch in batches for index in batch)
    return drawn


def test_several_processes_draw_as_one():
    """A process's images are every n-th of one process's."""

    def sampler(rank, world_size):
        made = DefaultSampler(range(12), shuffle=True, seed=3)
        made.rank, made.world_size = rank, world_size
        return made

    alone = draws_by_image([sampler(0, 1)])
    assert len(set(alone.values())) == 12
    assert draws_by_image([sampler(0, 2), sampler(1, 2)]) == alone


def test_nothing_to_iterate_over():
    assert list(SeededBatches(BatchSampler([], BATCH, False), 0)) == []


def test_transforms_with_a_state_of_their_own(tmp_path):
    transforms = [
        SimpleNamespace(),
        type('CachedMosaic', (), dict(results_cache=[]))(),
        type('Albu', (), dict(aug=SimpleNamespace(random_generator=0)))(),
    ]
    wrapped = SimpleNamespace(pipeline=SimpleNamespace(transforms=transforms))
    train(tmp_path / 'whole', save=7)
    with mock.patch.object(Augmented, 'dataset', wrapped, create=True), mock.patch(
        'mmengine.logging.MMLogger.warning'
    ) as warning:
        train(tmp_path / 'again', tmp_path / 'whole/iter_7.pth', save=100)
    said = [call.args[0] for call in warning.call_args_list if 'a state' in call.args[0]]
    assert [line.split()[0] for line in said] == ['CachedMosaic', 'Albu']


@pytest.mark.parametrize(
    'hooks, added',
    [
        (None, True),
        ([dict(type='EMAHook')], True),
        ([dict(type='FBAHook')], False),
        ([dict(type=IterationSeedHook)], False),
    ],
)
def test_configs_get_the_hook(hooks, added):
    cfg = Config(dict(custom_hooks=hooks))
    add_iteration_seeds(cfg)
    assert cfg.custom_hooks == (hooks or []) + [dict(type='IterationSeedHook')] * added
