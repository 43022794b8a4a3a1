"""What the methods that classify images have in common."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalLearningError, localize
from fba_mm.local.auxiliary.classification import cross_entropy, one_hot
from fba_mm.preflight.building import build_model

from ...conftest import build, retinanet
from ...test_analysis.small_configs import classifier
from .places import NUM_CLASSES, map_at, negative_log_share, place, step_with

METHODS = ['Greedy', 'PredSim', 'DGL', 'InfoPro', 'AugLocal']


def greedy(**changes):
    return MODELS.build(
        dict(dict(type='Greedy', cut_point=place(), num_classes=NUM_CLASSES), **changes)
    )


def test_mixed_labels_weigh_each_class():
    logits = torch.randn(4, NUM_CLASSES)
    shares = torch.rand(4, NUM_CLASSES).softmax(1)
    expected = -(shares * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, shares), expected)
    assert torch.equal(one_hot(shares, NUM_CLASSES), shares)
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_half_precision_logits_are_judged_in_full():
    logits, labels = torch.randn(4, NUM_CLASSES).bfloat16(), torch.tensor([0, 1, 2, 3])
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, negative_log_share(logits.float(), labels))


def test_scores_of_a_batch_augmentation_come_before_labels():
    auxiliary, x = greedy(), map_at()
    labels, shares = [0, 1, 2, 3, 4, 0], torch.rand(6, NUM_CLASSES).softmax(1)
    mixed = auxiliary.loss(x, {}, step_with(labels, shares))['loss_cls']
    logits = x.mean((2, 3)) @ auxiliary.fc.weight.T + auxiliary.fc.bias
    torch.testing.assert_close(mixed, -(shares * logits.log_softmax(1)).sum(1).mean())
    plain = auxiliary.loss(x, {}, step_with(labels))['loss_cls']
    torch.testing.assert_close(plain, negative_log_share(logits, labels))
    assert abs(plain - mixed) > 0.01


def test_the_output_is_taken_as_a_map():
    """Tokens, say, of backbones that pass on something else."""
    tokens, labels = torch.randn(6, 49, 16), [0, 1, 2, 3, 4, 0]
    auxiliary = greedy(cut_point=place(as_map=lambda x: x.mT.unflatten(2, (7, 7))))
    logits = tokens.mean(1) @ auxiliary.fc.weight.T + auxiliary.fc.bias
    torch.testing.assert_close(
        auxiliary.loss(tokens, {}, step_with(labels))['loss_cls'],
        negative_log_share(logits, labels),
    )


def test_loss_weight():
    torch.manual_seed(0)
    once = greedy()
    torch.manual_seed(0)
    thrice = greedy(loss_weight=3.0)
    x, step = map_at(), step_with([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(
        thrice.loss(x, {}, step)['loss_cls'], 3 * once.loss(x, {}, step)['loss_cls']
    )


# What a user gets wrong


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('num_classes', [None, 0, '10', True])
def test_without_classes(method, num_classes):
    with pytest.raises(
        LocalLearningError,
        match=(
            f"auxiliary.num_classes={num_classes!r}: .*auxiliary=dict\\(type='{method}', "
            'num_classes=10'
        ),
    ):
        MODELS.build(dict(type=method, cut_point=place(), num_classes=num_classes))


@pytest.mark.parametrize('method', METHODS + ['MAN', 'MAN++'])
def test_classes_other_than_the_heads(method):
    cfg = localize(classifier(), 3, auxiliary=dict(type=method, num_classes=7))
    model = build_model(cfg)
    with pytest.raises(LocalLearningError, match='num_classes=7, .* head has 5: give both'):
        model.backbone.auxiliary[0].check(model, model.backbone)
    cfg.model.backbone.auxiliary.num_classes = 5
    model = build_model(cfg)
    model.backbone.auxiliary[0].check(model, model.backbone)


@pytest.mark.parametrize('method', METHODS + ['MAN'])
def test_a_detector_is_no_classifier(method):
    model = build(retinanet(auxiliary=dict(type=method, num_classes=3)))
    name = 'InfoPro' if method == 'MAN' else method
    with pytest.raises(
        LocalLearningError,
        match=(f"^{name} serves image classification, and RetinaNet .*dict\\(type='SLM'\\)"),
    ):
        model.backbone.auxiliary[0].check(model, model.backbone)


@pytest.mark.parametrize('label', [[0, 1], None])
def test_images_without_one_class(label):
    step = step_with([0, 1])
    if label is None:
        del step.data_samples[1].gt_label
    else:
        step.data_samples[1].set_gt_label(label)
    with pytest.raises(LocalLearningError, match='exactly one class per image'):
        greedy().loss(map_at(images=2), {}, step)


@pytest.mark.parametrize('method, refused', [('Greedy', False), ('PredSim', False), ('DGL', True)])
def test_a_batch_of_one_image(method, refused):
    """The last batch of an epoch, say."""
    auxiliary = greedy(type=method)
    if refused:
        with pytest.raises(LocalLearningError, match=f'{method} .*drop_last=True'):
            auxiliary.loss(map_at(images=1), {}, step_with([2]))
    else:
        losses = auxiliary.loss(map_at(images=1), {}, step_with([2]))
        assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_error_reaches_the_user():
    """As one line, when the model is built."""
    cfg = localize(classifier(), 3, auxiliary=dict(type='DGL'))
    with pytest.raises(LocalLearningError, match='auxiliary.num_classes=None') as caught:
        build_model(cfg)
    assert '\n' not in str(caught.value)
