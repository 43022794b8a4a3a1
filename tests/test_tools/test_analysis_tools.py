"""Pictures of trained networks and of trainings, from what tools/train.py leaves."""

import json

import pytest
from matplotlib.image import imread

from .in_process import DEMO, ROOT, run_tool, write_config
from .test_bad_input import assert_refused

DIGITS = ROOT / 'configs/classification/digits'
CKA, ACTIVATIONS, TRAINING = (
    f'analysis_tools/{name}' for name in ('plot_cka', 'draw_activations', 'plot_training')
)


@pytest.mark.slow
def test_similarity_of_a_trained_and_an_untrained_detector(trained, tmp_path, capsys):
    out = tmp_path / 'new/cka.png'
    result = run_tool(
        CKA,
        *('--model', 'FBA', trained.config, trained.checkpoint),
        *('--model', 'start', trained.config, 'untrained'),
        *('--images', 4, '--batch', 4, '--out', out),
        capsys=capsys,
    )
    assert result.status == 0, result.err
    assert 'FBA and start: CKA of the same layer' in result.out
    assert imread(out).ndim == 3
    found = json.loads(out.with_suffix('.json').read_text())
    (comparison,) = found['comparisons']
    layers = comparison['first_layers']
    assert layers[0] == 'stem' and len(comparison['module_ends']) == 4
    assert len(comparison['matrix']) == len(comparison['same_layer']) == len(layers)


@pytest.mark.slow
def test_similarity_of_classifiers(tmp_path, capsys):
    """On a validation set that is part of scikit-learn; both modes of a network are the same."""
    out = tmp_path / 'cka.png'
    small = ['model.backbone.backbone.depth=20', 'model.backbone.num_modules=4']
    result = run_tool(
        CKA,
        *('--model', 'FBA', DIGITS / 'resnet32_fba.py', 'untrained'),
        *('--images', 16, '--batch', 8, '--out', out, '--cfg-options', *small),
        capsys=capsys,
    )
    assert result.status == 0, result.err
    found = json.loads(out.with_suffix('.json').read_text())
    assert found['images'] == 16 and found['batch'] == 8
    (itself,) = found['comparisons']
    assert len(itself['same_layer']) == 10
    assert all(value == pytest.approx(1, abs=1e-3) for value in itself['same_layer'])


@pytest.mark.slow
def test_where_modules_look(trained, data, tmp_path, capsys):
    """A stock network is looked at where the local one is cut."""
    stock = write_config(tmp_path / 'stock.py', data, base='bp')
    out = tmp_path / 'maps.png'
    result = run_tool(
        ACTIVATIONS,
        *('--model', 'BP', stock, 'untrained'),
        *('--model', 'FBA', trained.config, trained.checkpoint),
        *('--images', 2, '--out', out),
        capsys=capsys,
    )
    assert result.status == 0, result.err
    # Two images by two networks, each with an image and four modules.
    height, width, _ = imread(out).shape
    assert height / width == pytest.approx(4 / 5, abs=0.15)


def test_a_training_from_its_log(trained, tmp_path, capsys):
    out = tmp_path / 'training.png'
    result = run_tool(
        TRAINING, trained.work_dir, '--labels', 'FBA', '--x', 'time', '--out', out, capsys=capsys
    )
    assert result.status == 0, result.err
    assert imread(out).ndim == 3


def test_refused(trained, tmp_path, capsys):
    one = ('--model', 'A', DEMO['bp'], 'untrained')
    for tool, args, message in (
        (CKA, [*one, '--batch', 3], '--batch=3: give a number of images from 4'),
        (CKA, ['--model', 'A', DEMO['bp'], trained.checkpoint], 'does not fit the model'),
        (ACTIVATIONS, [*one, *one], 'two are called A'),
        (TRAINING, [trained.work_dir, '--labels', 'A', 'B'], '2 for 1 trainings'),
        (TRAINING, [tmp_path], 'has no log of a training'),
        (TRAINING, [trained.work_dir, trained.work_dir], 'two trainings have the same name'),
    ):
        assert_refused(run_tool(tool, *args, '--out', tmp_path / 'x.png', capsys=capsys), message)
