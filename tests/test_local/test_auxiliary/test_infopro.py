"""InfoPro against the same in plain operations."""

import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from torch.nn import functional as F

from fba_mm import LocalLearningError
from fba_mm.local.auxiliary.infopro import InfoPro, supervised_contrast

from .places import (
    NUM_CLASSES,
    assert_equal_at,
    batch_norm,
    map_at,
    negative_log_share,
    place,
    size_of,
    step_with,
    unsettle,
)

LABELS = [0, 1, 2, 3, 4, 0]
MEAN, STD = [125.0, 123.0, 114.0], [63.0, 62.0, 67.0]


@pytest.mark.parametrize('index, c, width', [(0, 16, 32), (6, 32, 64), (11, 64, 64)])
def test_parameters(index, c, width):
    """The last stage's convolution keeps the channels."""
    classifier = 9 * c * width + 2 * width + (width + 1) * 128 + (128 + 1) * 10
    decoder = 9 * c * 12 + 12 + 2 * 12 + 9 * 12 * 3 + 3
    assert size_of(InfoPro(place(index), 10)) == classifier + decoder


def batch_of_pictures(labels=LABELS):
    """A step, and the images in 0 to 1 that its inputs were normalized from."""
    pixels = torch.randint(0, 256, (len(labels), 3, 16, 16))
    preprocessor = ClsDataPreprocessor(mean=MEAN, std=STD)
    step = step_with(labels, preprocessor=preprocessor)
    step.inputs = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return step, pixels / 255


def cross_entropy_of_pixels(auxiliary, x, image):
    size = x.shape[2]
    # Corner on corner: position i of 16 lies at i · (size - 1) / 15 of the map.
    at = torch.arange(16) * (size - 1) / 15
    low = at.floor().long().clamp(max=size - 2)
    to_image = torch.zeros(16, size)
    to_image[range(16), low], to_image[range(16), low + 1] = 1 - (at - low), at - low
    hidden = torch.einsum('ih,jw,nchw->ncij', to_image, to_image, x)
    first, norm, _, last = auxiliary.decoder
    hidden = F.conv2d(hidden, first.weight, first.bias, padding=1)
    hidden = batch_norm(hidden, norm).clamp(min=0)
    restored = 1 / (1 + (-F.conv2d(hidden, last.weight, last.bias, padding=1)).exp())
    return -(image * restored.log() + (1 - image) * (1 - restored).log()).mean()


@pytest.mark.parametrize('index, stride', [(6, 2), (12, 1)])
def test_loss(index, stride):
    auxiliary, x = InfoPro(place(index), NUM_CLASSES), map_at(index)
    unsettle(auxiliary)
    step, image = batch_of_pictures()
    losses = auxiliary.loss(x, {}, step)
    assert losses.keys() == {'loss_reconstruction', 'loss_cls'}
    conv, norm, _, _, _, first, _, last = auxiliary.classifier
    hidden = batch_norm(F.conv2d(x, conv.weight, stride=stride, padding=1), norm).clamp(min=0)
    hidden = (hidden.mean((2, 3)) @ first.weight.T + first.bias).clamp(min=0)
    logits = hidden @ last.weight.T + last.bias
    depth = index / 14
    expected = (0.05 + depth * 0.45) * negative_log_share(logits, LABELS)
    assert_equal_at(x, losses['loss_cls'], expected)
    expected = (5 - depth * 4.8) * cross_entropy_of_pixels(auxiliary, x, image)
    assert_equal_at(x, losses['loss_reconstruction'], expected)


def test_weights_run_from_the_first_module_to_the_last():
    auxiliaries = [InfoPro(place(i), 10) for i in range(15)]
    assert (auxiliaries[0].reconstruction_weight, auxiliaries[0].task_weight) == (5, 0.05)
    assert auxiliaries[7].reconstruction_weight == pytest.approx(2.6)
    assert auxiliaries[7].task_weight == pytest.approx(0.275)
    assert auxiliaries[14].reconstruction_weight == pytest.approx(0.2)
    assert auxiliaries[14].task_weight == pytest.approx(0.5)
    # One auxiliary network alone is the first.
    alone = InfoPro(place(0, num_modules=2), 10)
    assert (alone.reconstruction_weight, alone.task_weight) == (5, 0.05)


def test_weights_one_by_one():
    given = dict(
        reconstruction_weight=[65 / 14] * 4 + [60 / 14] * 5 + [55 / 14] * 5,
        task_weight=[0.5 * i for i in range(1, 15)],
    )
    found = [InfoPro(place(i, num_modules=15), 10, **given) for i in (0, 4, 13)]
    assert [f.reconstruction_weight for f in found] == pytest.approx(
        [4.643, 4.286, 3.929], abs=1e-3
    )
    assert [f.task_weight for f in found] == [0.5, 2.5, 7.0]


def test_weights_of_the_deeper_network():
    settings = dict(reconstruction_weight=(5.0, 0.5), task_weight=(0, 1))
    first = InfoPro(place(0, num_modules=55), 10, **settings)
    assert (first.reconstruction_weight, first.task_weight) == (5, 0)
    last = InfoPro(place(0, module=53, num_modules=55), 10, **settings)
    assert (last.reconstruction_weight, last.task_weight) == (0.5, 1)


def plain_contrast(features, labels):
    unit = [f / (f * f).sum().sqrt() for f in features]
    total = 0
    for i, own in enumerate(unit):
        others = {j: torch.exp((own * unit[j]).sum() / 0.07) for j in range(len(unit)) if j != i}
        alike = [j for j in others if labels[j] == labels[i]]
        if alike:
            total = total - sum(torch.log(others[j] / sum(others.values())) for j in alike) / len(
                alike
            )
    return total / len(unit)


@pytest.mark.parametrize('labels', [[0, 1, 2, 3, 4, 0], [1, 1, 1, 2, 2, 3]])
def test_contrast(labels):
    features = torch.randn(6, 128)
    torch.testing.assert_close(
        supervised_contrast(features, torch.tensor(labels)), plain_contrast(features, labels)
    )


@pytest.mark.parametrize('labels', [[0], [0, 1, 2]])
def test_contrast_without_a_pair(labels):
    features = torch.randn(len(labels), 128, requires_grad=True)
    loss = supervised_contrast(features, torch.tensor(labels))
    loss.backward()
    assert loss == 0 and features.grad.eq(0).all()


def test_contrastive_form():
    auxiliary, x = InfoPro(place(14), 10, contrastive=True), map_at(14)
    assert auxiliary.classifier[-1].out_features == 128
    step, _ = batch_of_pictures()
    losses = auxiliary.loss(x, {}, step)
    expected = 0.5 * plain_contrast(auxiliary.classifier(x), LABELS)
    torch.testing.assert_close(losses['loss_cls'], expected)
    mixed = 0.7 * torch.eye(10)[LABELS] + 0.3 * torch.eye(10)[LABELS[::-1]]
    for sample, score in zip(step.data_samples, mixed):
        sample.set_gt_score(score)
    torch.testing.assert_close(auxiliary.loss(x, {}, step)['loss_cls'], expected)


@pytest.mark.parametrize('mean, expected', [([127.5] * 3, 1.0), (None, 0.5)])
def test_image_before_normalization(mean, expected):
    """Whatever padding put there, it lies in 0 to 1."""
    preprocessor = ClsDataPreprocessor(mean=mean, std=None if mean is None else [127.5] * 3)
    step = step_with([0], preprocessor=preprocessor)
    step.inputs = torch.full((1, 3, 2, 2), 127.5)
    image = InfoPro(place(), 10)._image(step)
    torch.testing.assert_close(image, torch.full((1, 3, 2, 2), expected))
    step.inputs = torch.full((1, 3, 2, 2), -9.0)
    assert InfoPro(place(), 10)._image(step).eq(0).all()


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(task_weight=0.5), r'task_weight=0.5: give two numbers'),
        (dict(task_weight=(-1.0, 1.0)), r'task_weight=\(-1.0, 1.0\): give two numbers'),
        (dict(reconstruction_weight=(1.0, 2.0, 3.0)), 'reconstruction_weight=.*give two numbers'),
        (dict(reconstruction_weight=(0.0, 1.0), task_weight=(0.0, 1.0)), 'both 0 at module 1'),
    ],
)
def test_weights_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message):
        InfoPro(place(0), 10, **settings)
