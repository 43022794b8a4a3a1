"""What is drawn of an auxiliary network is what ran."""

from dataclasses import replace

import pytest
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch

from fba_mm import localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.errors import LocalLearningError

from ..test_analysis.small_configs import classifier, detector, local_detector, super_resolution
from .in_process import load_tool, run_tool
from .test_bad_input import assert_refused

TOOL = 'analysis_tools/draw_auxiliary'
tool = load_tool(TOOL)
draw_auxiliary, trace_auxiliary = tool.draw_auxiliary, tool.trace_auxiliary


def traced(cfg, shape, num_modules=None, **auxiliary):
    if num_modules is not None:
        cfg.model.backbone = dict(
            type='LocalBackbone',
            backbone=cfg.model.backbone,
            num_modules=num_modules,
            auxiliary=auxiliary,
        )
        cfg.custom_hooks = [dict(type='FBAHook')]
        cfg.optim_wrapper.type = 'LocalOptimWrapper'
    step = TrainingStep(cfg)
    return step.model, trace_auxiliary(step, synthetic_batch(step.model, shape))


def drawn_texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_own_layers_in_the_order_in_which_they_ran():
    model, runs = traced(classifier(), (2, 3, 32, 32), 4, type='Greedy', num_classes=5)
    assert [run.module for run in runs] == [1, 2, 3]
    for run, auxiliary in zip(runs, model.backbone.auxiliary):
        assert [(layer.name, layer.kind, layer.shape) for layer in run.layers] == [
            ('Linear', 'auxiliary', '5')
        ]
        assert run.losses == ('loss_cls',)
        assert run.parameters == sum(p.numel() for p in auxiliary.parameters())
        assert int(run.shape.split('×')[0]) == auxiliary.cut_point.channels


def test_a_shared_head_is_told_from_the_own_blocks(tmp_path):
    _, runs = traced(local_detector(3), (2, 3, 64, 64))
    kinds = [(layer.name, layer.kind) for layer in runs[0].layers]
    assert kinds[-2:] == [('FPN', 'shared'), ('RetinaHead', 'shared')]
    assert {kind for _, kind in kinds[:-2]} == {'auxiliary'}
    texts = drawn_texts(draw_auxiliary(runs, tmp_path / 'slm.png'))
    assert any(text.startswith('FPN') for text in texts)
    assert "the model's own, shared by all modules" in texts


def test_what_pools_has_nothing_to_train(tmp_path):
    _, runs = traced(localize(detector(), 3, auxiliary='pooled'), (2, 3, 64, 64))
    assert {layer.kind for layer in runs[0].layers[:-2]} == {'fixed'}
    assert 'nothing to train' in drawn_texts(draw_auxiliary(runs, tmp_path / 'pooled.png'))


def test_the_bank_gives_shallower_maps():
    """They stand before the neck that they are given to, in those modules that have some below."""
    model, runs = traced(local_detector('blocks'), (2, 3, 64, 64))
    backbone = model.backbone
    levels = [
        {backbone.segments[i].level for i in module} - {None} for module in backbone.module_segments
    ]
    for k, run in enumerate(runs):
        earlier = sorted(set().union(*levels[:k]) - levels[k])
        banked = [i for i, layer in enumerate(run.layers) if layer.kind == 'bank']
        if not earlier:
            assert banked == []
            continue
        (place,) = banked
        names = ', '.join(f'level {level}' for level in earlier)
        assert run.layers[place].name == f'feature bank: {names}'
        assert run.layers[place + 1].name == 'FPN'
    assert earlier


def test_the_bank_of_networks_that_make_images():
    """It is given to the reduced head, which comes before the loss."""
    cfg = localize(super_resolution(), 3, auxiliary=dict(type='SLMReconstruction', skip=True))
    _, runs = traced(cfg, (2, 3, 24, 24))
    kinds = [layer.kind for layer in runs[1].layers]
    assert kinds.count('bank') == 1 and kinds.index('bank') < len(kinds) - 1


def test_averaged_blocks_and_branches(tmp_path):
    """MAN++ runs two blocks on the module's output, one of them an average."""
    _, runs = traced(
        classifier(), (2, 3, 32, 32), 4, type='MAN++', num_classes=5, host=dict(type='Greedy')
    )
    first, second, last = runs[0].layers
    assert [first.kind, second.kind, last.kind] == ['auxiliary', 'averaged', 'auxiliary']
    assert [first.branches, second.branches, last.branches] == [False, True, False]
    texts = drawn_texts(draw_auxiliary(runs, tmp_path / 'man.png', modules=[2]))
    assert texts.count("from the module's output") == 1
    assert sum(text.startswith('module 2') for text in texts) == 1
    assert not any(text.startswith('module 1') for text in texts)


def test_the_picture_fits_its_columns(tmp_path):
    _, runs = traced(local_detector(3), (2, 3, 128, 128))
    figure = draw_auxiliary(runs, tmp_path / 'new' / 'slm.png', title='RetinaNet')
    assert imread(tmp_path / 'new' / 'slm.png').ndim == 3
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frames = [
        patch.get_window_extent()
        for patch in figure.axes[0].patches
        if isinstance(patch, FancyBboxPatch)
    ]
    for text in boxes:
        for frame in frames:
            inside = frame.x0 < text.x0 and text.x1 < frame.x1
            assert inside or not text.overlaps(frame)


def test_nothing_stays_behind():
    """A traced model trains on as if nothing had been."""
    model, runs = traced(local_detector(3), (2, 3, 64, 64))
    assert not any(m._forward_hooks for m in model.backbone.auxiliary.modules())
    assert all('loss' not in vars(auxiliary) for auxiliary in model.backbone.auxiliary)


def test_refused():
    with pytest.raises(LocalLearningError, match='no auxiliary networks.*--local K'):
        traced(classifier(), (2, 3, 32, 32))
    _, runs = traced(local_detector(3), (2, 3, 64, 64))
    with pytest.raises(LocalLearningError, match='module 7 has no.*1 to 2'):
        draw_auxiliary(runs, 'unused.png', modules=[1, 7])


def test_a_stock_config_made_local(tmp_path, capsys):
    detector().dump(tmp_path / 'small.py')
    out = tmp_path / 'pictures/small.png'
    result = run_tool(TOOL, tmp_path / 'small.py', '--local', 3, '--out', out, capsys=capsys)
    assert result.status == 0, result.err
    assert str(out) in result.out
    assert imread(out).ndim == 3


@pytest.mark.slow
def test_several_networks_side_by_side(tmp_path, capsys):
    _, runs = traced(local_detector(3), (2, 3, 64, 64))
    named = [replace(run, network=name) for name in ('one', 'other') for run in runs]
    texts = drawn_texts(draw_auxiliary(named, tmp_path / 'both.png', modules=[2]))
    assert texts.count('one') == texts.count('other') == 1
    assert sum(text.startswith('module 2') for text in texts) == 2
    with pytest.raises(LocalLearningError, match='one: module 3 has no auxiliary network'):
        draw_auxiliary(named, 'unused.png', modules=[3])
    paths = [tmp_path / 'shallow.py', tmp_path / 'other.py']
    for path in paths:
        detector().dump(path)
    out = tmp_path / 'joint.png'
    result = run_tool(TOOL, *paths, '--local', 2, '--out', out, capsys=capsys)
    assert result.status == 0, result.err
    assert imread(out).ndim == 3
    assert_refused(run_tool(TOOL, paths[0], paths[0], capsys=capsys), 'the same name')


def test_a_config_without_modules(tmp_path, capsys):
    detector().dump(tmp_path / 'small.py')
    result = run_tool(TOOL, tmp_path / 'small.py', '--out', tmp_path / 'x.png', capsys=capsys)
    assert_refused(result, 'no auxiliary networks')
