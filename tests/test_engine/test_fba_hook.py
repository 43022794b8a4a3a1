"""What the hook lets a module see, what it refuses, and what it leaves behind."""

import copy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from fba_mm import AmpLocalOptimWrapper, FBAHook, LocalLearningError, LocalOptimWrapper, localize
from fba_mm.local import SLM, LocalStep
from fba_mm.preflight.building import build_model

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer
from ..test_analysis.small_configs import classifier


def runner_of(model, optim_wrapper=LocalOptimWrapper, **settings):
    """As much of a runner as the hook looks at before training."""
    optim_wrapper = optim_wrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    return SimpleNamespace(
        **dict(
            dict(model=model, optim_wrapper=optim_wrapper, logger=mock.Mock(), cfg={}, hooks=[]),
            **settings,
        )
    )


class AmpOptimWrapper(OptimWrapper):
    """MMEngine's own wants a GPU; the name decides what is advised."""


@pytest.fixture(scope='module')
def model():
    return build(retinanet(num_modules=4))


# What a user gets wrong


def test_no_local_backbone():
    with pytest.raises(LocalLearningError, match="no LocalBackbone.*type='LocalBackbone'"):
        FBAHook().before_run(runner_of(build(retinanet(num_modules=None))))


def test_two_local_backbones():
    cfg = retinanet(num_modules=2)
    cfg['backbone'] = dict(type='LocalBackbone', backbone=cfg['backbone'], num_modules=1)
    with pytest.raises(
        LocalLearningError, match=r'2 LocalBackbones \(backbone, backbone.backbone\): wrap one'
    ):
        FBAHook().before_run(runner_of(build(cfg)))


@pytest.mark.parametrize('paths', ['backbone', ['neck', 'backbone.backbone.layer1.0']])
def test_wrapped_layers_that_would_get_no_gradient(model, paths):
    cfg = dict(activation_checkpointing=paths)
    with pytest.raises(
        LocalLearningError, match="activation_checkpointing='backbone.*with_cp=True"
    ):
        FBAHook().before_run(runner_of(model, cfg=cfg))
    FBAHook().before_run(runner_of(model, cfg=dict(activation_checkpointing=['bbox_head'])))


@pytest.mark.parametrize(
    'wrapper, advice',
    [(OptimWrapper, 'LocalOptimWrapper'), (AmpOptimWrapper, 'AmpLocalOptimWrapper')],
)
def test_stock_optimizer_wrapper(model, wrapper, advice):
    message = f"optim_wrapper.type is {wrapper.__name__}, .*type='{advice}'"
    with pytest.raises(LocalLearningError, match=message):
        FBAHook().before_run(runner_of(model, wrapper))


def test_stock_model_wrapper(model):
    message = "DataParallel would not reduce .*model_wrapper_cfg=dict.type='LocalDataParallel'"
    with pytest.raises(LocalLearningError, match=message):
        FBAHook().before_run(runner_of(torch.nn.DataParallel(model)))


@pytest.mark.parametrize('num_classes', [2, 7])
def test_auxiliary_network_for_other_classes(num_classes):
    model = build(retinanet(num_modules=4, auxiliary=own_head(num_classes=num_classes)))
    with pytest.raises(
        LocalLearningError, match=f'predicts {num_classes} classes, the model 3: .*num_classes'
    ):
        FBAHook().before_run(runner_of(model))


def test_settings_that_would_reach_auxiliary_networks(model):
    wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}))
    with pytest.raises(LocalLearningError, match="constructor='LocalOptimWrapperConstructor'$"):
        FBAHook().before_run(runner_of(model, cfg=dict(optim_wrapper=wrapper)))
    wrapper['constructor'] = 'LocalOptimWrapperConstructor'
    FBAHook().before_run(runner_of(model, cfg=dict(optim_wrapper=wrapper)))


def test_unknown_scope():
    with pytest.raises(LocalLearningError, match="scope='future': .*'past', 'all', 'off'"):
        FBAHook(scope='future')
    with pytest.raises(LocalLearningError, match="scope='future'"):
        HOOKS.build(dict(type='FBAHook', scope='future'))


@pytest.mark.parametrize('wrapper', [LocalOptimWrapper, AmpLocalOptimWrapper])
def test_what_fits_is_accepted(model, wrapper):
    runner = runner_of(model, wrapper)
    FBAHook().before_run(runner)
    message = runner.logger.info.call_args[0][0]
    assert "4 modules, feature bank 'past'" in message and 'module 4' in message


def test_evaluation_needs_nothing():
    stock = build(retinanet(num_modules=None))
    # A runner builds the wrapper only to train.
    for optim_wrapper in (None, dict(type='OptimWrapper')):
        FBAHook().before_run(runner_of(stock, optim_wrapper=mock.Mock(return_value=optim_wrapper)))


# The bank, while a module trains


def banks_seen(trainer, data):
    """Per module, the bank's maps by level."""
    seen = []
    loss = SLM.loss

    def looking(self, x, levels, step):
        seen.append(
            {level: step.bank.get(level) for level in range(4) if step.bank.get(level) is not None}
        )
        return loss(self, x, levels, step)

    with mock.patch.object(SLM, 'loss', looking):
        trainer.step(data)
    return seen


@pytest.mark.parametrize(
    'scope, expected',
    [
        ('off', [set(), set(), set()]),
        ('past', [set(), {0}, {0, 1}]),
        ('all', [{0, 1, 2, 3}] * 3),
    ],
)
def test_scope(scope, expected):
    trainer = Trainer(build(retinanet(num_modules='stages')), scope=scope)
    for _ in range(2):
        seen = banks_seen(trainer, batch())
        assert [set(maps) for maps in seen] == expected
        for maps in seen:
            for level, feature in maps.items():
                assert feature.shape == (2, 8 * 2**level, 16 // 2**level, 16 // 2**level)
                assert not feature.requires_grad and feature.grad_fn is None


def reading_all_levels(num_modules):
    """A level that no neck looks at has no memory to compare."""
    config = retinanet(num_modules=num_modules)
    config['neck']['start_level'] = 0
    return build(config)


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_the_bank_is_the_networks_own_memory(scope):
    model = reading_all_levels('stages')
    trainer = Trainer(model, scope=scope)
    outputs = {}
    blocks = [model.backbone.backbone.get_submodule(f'layer{level + 1}.1') for level in range(4)]
    for level, block in enumerate(blocks):
        # A second run, after the look ahead, replaces the first.
        block.register_forward_hook(
            lambda module, args, output, level=level: outputs.__setitem__(level, output)
        )
    seen = []
    loss = SLM.loss

    def looking(self, x, levels, step):
        for level in range(self.cut_point.stage):
            seen.append(step.bank.get(level).data_ptr() == outputs[level].data_ptr())
        return loss(self, x, levels, step)

    with mock.patch.object(SLM, 'loss', looking):
        trainer.step(batch())
    assert seen == [True] * 3


def test_deeper_maps_are_those_of_the_plain_forward():
    model, plain = reading_all_levels('stages'), reading_all_levels(None)
    plain.load_state_dict(
        {
            k.replace('backbone.backbone.', 'backbone.'): v
            for k, v in model.state_dict().items()
            if '.auxiliary.' not in k
        }
    )
    with torch.no_grad():
        images = plain.data_preprocessor(batch(), training=True)['inputs']
        expected = plain.backbone(images)
    for maps in banks_seen(Trainer(model, scope='all'), batch()):
        assert all(torch.equal(maps[level], expected[level]) for level in range(4))


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_the_bank_is_emptied(scope):
    trainer = Trainer(build(retinanet(num_modules='stages')), scope=scope)
    bank, wrapped = trainer.hook.bank, trainer.model.backbone
    trainer.step(batch())
    assert all(bank.get(level) is None for level in range(4))
    assert not isinstance(wrapped.step, LocalStep) and wrapped._answer is None

    failing = mock.patch.object(trainer.model.bbox_head, 'loss', side_effect=MemoryError)
    for _ in range(2):
        with failing as loss, pytest.raises(MemoryError):
            trainer.step(batch())
        assert loss.called
        assert all(bank.get(level) is None for level in range(4))
        assert not isinstance(wrapped.step, LocalStep) and wrapped._answer is None
    assert all(
        norm.track_running_stats
        for norm in trainer.model.modules()
        if isinstance(norm, torch.nn.BatchNorm2d)
    )
    trainer.step(batch())


def test_processes_draw_for_their_own_images():
    def draw(rank):
        hook = FBAHook()
        with mock.patch('fba_mm.distributed.placement.get_rank', lambda: rank):
            hook.before_train_iter(SimpleNamespace(seed=3, iter=7), 0)
        return torch.rand(4, generator=hook._generator)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(0), draw(1))


# The log, and the way in and out


def test_local_losses_in_the_log():
    trainer = Trainer(build(retinanet(num_modules=4)))
    hub = trainer.runner.message_hub
    for seed in range(2):
        trainer.step(batch(seed=seed))
        for i in (1, 2, 3):
            terms = [trainer.log.pop(f'local_{i}.{name}') for name in ('loss_cls', 'loss_bbox')]
            total = trainer.log.pop(f'local_{i}.loss')
            assert hub.get_scalar(f'train/local_{i}.loss').current() == float(total)
            assert float(total) == pytest.approx(float(sum(terms)))
        assert not trainer.log
    assert not trainer.hook._log


def test_terms_are_logged_on_demand_alone():
    trainer = Trainer(build(retinanet(num_modules=4)))
    trainer.hook.log_terms = False
    trainer.step(batch())
    assert trainer.log.keys() == {'local_1.loss', 'local_2.loss', 'local_3.loss'}
    assert not any(value.requires_grad for value in trainer.log.values())


def test_after_training_the_model_is_free_again():
    trainer = Trainer(build(retinanet(num_modules=4)))
    model = trainer.model
    assert model._forward_pre_hooks and model._forward_hooks
    trainer.hook.after_train(trainer.runner)
    assert not model._forward_pre_hooks and not model._forward_hooks
    model.train_step(batch(), trainer.optim_wrapper)
    assert not trainer.hook._log


def test_chance_depends_on_the_iteration_alone():
    """What bank_dropout draws is the same after a restart, whatever else is drawn in between."""

    def losses(start):
        torch.manual_seed(start)
        trainer = Trainer(build(retinanet(num_modules='stages')), scope='all')
        trainer.runner.iter = start
        found = []
        for _ in range(start, 4):
            torch.manual_seed(torch.seed())
            trainer.gradients(batch())
            found.append(float(trainer.log['local_1.loss']))
        return found

    assert losses(0)[2:] == losses(2)
    assert len(set(losses(0))) > 1


class Batches(torch.utils.data.Dataset):
    """Six images, one item each."""

    def __init__(self):
        data = batch(images=6)
        self.items = [dict(inputs=i, data_samples=s) for i, s in zip(*data.values())]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return copy.deepcopy(self.items[index])


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_a_run_of_mmengines_runner(tmp_path, scope):
    loader = DataLoader(Batches(), batch_size=2, collate_fn=pseudo_collate)
    logged = {}

    class Reader(FBAHook):
        def after_train_iter(self, runner, *args, **kwargs):
            super().after_train_iter(runner, *args, **kwargs)
            scalars = runner.message_hub.log_scalars
            logged[runner.iter] = {k for k in scalars if k.startswith('train/local')}

    runner = Runner(
        model=retinanet(num_modules='stages'),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            type='LocalOptimWrapper',
            apply='eager',
            optimizer=dict(type='SGD', lr=0.005, momentum=0.9),
            clip_grad=dict(max_norm=10.0),
            accumulative_counts=2,
        ),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[Reader(scope=scope), dict(type='EMAHook')],
        log_level='WARNING',
        default_scope='mmdet',
        experiment_name=f'runner_{scope}',
    )
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert runner.iter == 6
    assert logged == {
        i: {'train/local_1.loss', 'train/local_2.loss', 'train/local_3.loss'} for i in range(6)
    }
    after = runner.model.state_dict()
    assert all(not torch.equal(after[n], before[n]) for n, _ in runner.model.named_parameters())
    state = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert state['state_dict'].keys() == after.keys()


def test_twice():
    hook, model = FBAHook(), build(retinanet(num_modules=2))
    with pytest.raises(LocalLearningError, match='several FBAHooks: .* leave one'):
        hook.before_run(runner_of(model, hooks=[hook, FBAHook()]))


@pytest.mark.parametrize('auxiliary, advised', [('shared', True), ('own', False)])
def test_one_head_for_all_modules_of_a_classifier(auxiliary, advised):
    runner = runner_of(build_model(localize(classifier(), 2, auxiliary=auxiliary)))
    FBAHook().before_run(runner)
    said = [call.args[0] for call in runner.logger.warning.call_args_list]
    assert any('heads of their own' in one for one in said) == advised
