"""Local learning in an ordinary PyTorch loop: torchvision's and timm's models, no runner."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fba_mm import LocalLearning, LocalLearningError
from fba_mm.analysis.memory import measure_step

CLASSES = 3
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def classifier():
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def detector():
    """Torchvision's RetinaNet on a shallow ResNet, and a batch: losses on images of two sizes."""
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(
        classifier(), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return RetinaNet(backbone, CLASSES, min_size=64, max_size=96)


def pictures():
    images = [torch.rand(3, 64, 80), torch.rand(3, 64, 64)]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
    return images, [dict(boxes=boxes, labels=torch.tensor([i])) for i in (0, 2)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def total(losses):
    return sum(losses.values()) if isinstance(losses, dict) else losses


def train(model, criterion, data, steps=2, eager=False, **kwargs):
    """An ordinary loop; locally, if there are settings for it."""
    torch.manual_seed(1)
    local = LocalLearning(model, criterion, **kwargs) if kwargs else None
    optimizer = sgd(model.parameters() if local is None else local.parameters())
    inputs, targets = data
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        if local is not None:
            loss = local(inputs, targets, optimizer if eager else None)
        else:
            loss = (
                model(inputs, targets) if criterion is None else criterion(model(inputs), targets)
            )
        total(loss).backward()
        optimizer.step()
    return local


def same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    'settings', [dict(num_modules=1), dict(num_modules=1, recompute=2)], ids=str
)
@pytest.mark.parametrize('task', ['classification', 'detection'])
def test_one_module_is_back_propagation_bit_for_bit(task, settings):
    build, criterion, data = (
        (classifier, F.cross_entropy, (IMAGES, LABELS))
        if task == 'classification'
        else (detector, None, pictures())
    )
    plain, ours = build(), build()
    assert same_state(plain, ours)
    train(plain, criterion, data)
    train(ours, criterion, data, **settings)
    assert same_state(plain, ours)


def test_the_model_stays_the_plain_one():
    """Its layers, their names and its predictions, before, during and after training."""
    model, plain = detector(), detector()
    images, targets = pictures()
    names = list(plain.state_dict())
    local = LocalLearning(model, num_modules=3)
    assert same_state(model, plain)
    losses = local(images, targets)
    assert list(losses) == list(plain(images, targets))
    total(losses).backward()
    sgd(local.parameters()).step()
    assert (
        list(model.state_dict()) == names and type(model.backbone.body).__name__ != 'LocalBackbone'
    )
    assert not same_state(model, plain)
    plain.load_state_dict(model.state_dict())
    for ours, theirs in zip(model.eval()(images), plain.eval()(images)):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert same_state(copy.deepcopy(model), model)


def test_every_module_learns_from_its_own_loss():
    """Modules but the last have gradients before the loss is asked for its own, and keep them."""
    model = classifier()
    local = LocalLearning(model, F.cross_entropy, num_modules='stages')
    loss = local(IMAGES, LABELS)
    first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    last = {name for name, _ in model.named_parameters()} - set(first)
    assert {name.partition('.')[0] for name in last} == {'layer4', 'fc'}
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (name in last) is not (name in first and torch.equal(parameter.grad, first[name]))
        assert parameter.grad is not None and parameter.grad.any()
    assert all(p.grad is not None for p in local.auxiliary.parameters())
    assert list(local.log) == [f'local_{i}.loss' for i in (1, 2, 3)]
    with torch.no_grad():
        assert torch.allclose(F.cross_entropy(local.output, LABELS), loss)


@pytest.mark.parametrize(
    'auxiliary',
    ['Greedy', 'PredSim', 'DGL', 'InfoPro', 'AugLocal', 'MAN', 'MAN++', dict(type='SLM')],
    ids=str,
)
def test_auxiliary_networks_by_name(auxiliary):
    local = train(
        classifier(), F.cross_entropy, (IMAGES, LABELS), 1, num_modules=3, auxiliary=auxiliary
    )
    assert len(local.log) == 2 and all(value.isfinite() for value in local.log.values())
    assert 'module 3: ' in local.describe()


def test_gradients_applied_at_once_are_those_applied_by_the_loop():
    ends, eager = classifier(), classifier()
    train(ends, F.cross_entropy, (IMAGES, LABELS), num_modules=3)
    train(eager, F.cross_entropy, (IMAGES, LABELS), eager=True, num_modules=3)
    assert same_state(ends, eager)


def test_what_is_done_to_the_loss_is_done_to_the_modules_losses():
    gradients = []
    for scale in (None, lambda loss: loss / 4):
        model = classifier()
        local = LocalLearning(model, F.cross_entropy, num_modules=3)
        torch.manual_seed(1)
        loss = local(IMAGES, LABELS, scale=scale)
        (loss if scale is None else scale(loss)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(whole / 4, quarter) for whole, quarter in zip(*gradients))


def test_two_runs_with_one_seed_are_equal():
    models = [classifier(), classifier()]
    for model in models:
        torch.manual_seed(2)
        train(model, F.cross_entropy, (IMAGES, LABELS), num_modules=3, scope='all')
    assert same_state(*models)


def test_a_loss_that_is_no_number():
    model = classifier()
    spoil = {'on': False}

    def criterion(scores, labels):
        loss = F.cross_entropy(scores, labels)
        return loss * float('nan') if spoil['on'] else loss

    local = LocalLearning(model, criterion, num_modules=3)
    local(IMAGES, LABELS).backward()
    spoil['on'] = True
    model.zero_grad()
    with pytest.raises(LocalLearningError, match='^iteration 2: the loss of module 1 of 3 is nan'):
        local(IMAGES, LABELS)
    assert all(p.grad is None for p in model.parameters())
    local = LocalLearning(model, criterion, num_modules=3, invalid_loss='skip')
    local(IMAGES, LABELS).backward()
    assert all(p.grad is None for p in model.parameters())


def test_learns():
    """Colours tell the classes apart: what is learned shows in evaluation."""
    labels = torch.arange(12) % CLASSES
    images = 0.3 * torch.rand(12, 3, 32, 32)
    images[torch.arange(12), labels] += 0.5
    model = classifier()
    data = images, labels
    local = train(model, F.cross_entropy, data, 20, num_modules=4, auxiliary='Greedy')
    assert all(value < 0.2 for value in local.log.values())
    with torch.no_grad():
        assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.slow
def test_peak_memory_is_below_back_propagations():
    """docs/plain_pytorch.md has a ResNet-50 at full size."""
    images, labels = torch.rand(8, 3, 96, 96), torch.arange(8) % CLASSES

    def peak(**kwargs):
        model = classifier()
        local = LocalLearning(model, F.cross_entropy, **kwargs) if kwargs else None
        optimizer = sgd(model.parameters() if local is None else local.parameters())

        def step():
            loss = (
                F.cross_entropy(model(images), labels)
                if local is None
                else local(images, labels, optimizer)
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        watched = [model, [] if local is None else local.auxiliary]
        return measure_step(step, watch=watched).peak_bytes

    bp, exact = peak(), peak(num_modules=1, recompute=3)
    local = peak(num_modules=4, auxiliary='Greedy')
    assert exact < bp and local < 0.75 * bp, (bp, exact, local)


def test_segmentation():
    torch.manual_seed(0)
    model = torchvision.models.segmentation.FCN(
        torchvision.models._utils.IntermediateLayerGetter(classifier(), {'layer4': 'out'}),
        torchvision.models.segmentation.fcn.FCNHead(512, CLASSES),
    )
    masks = torch.randint(CLASSES, (4, 32, 32))
    local = train(
        model, lambda out, y: F.cross_entropy(out['out'], y), (IMAGES, masks), 1, num_modules=3
    )
    assert local.output['out'].shape == (4, CLASSES, 32, 32) and len(local.log) == 2
    with pytest.raises(LocalLearningError, match='DGL serves image classification'):
        LocalLearning(model, F.cross_entropy, auxiliary=dict(type='DGL', num_classes=CLASSES))


@pytest.mark.parametrize('name', ['resnet18', 'deit_tiny_patch16_224'])
def test_timm(name):
    timm = pytest.importorskip('timm')
    settings = dict(img_size=32) if 'deit' in name else {}
    create = partial(timm.create_model, name, num_classes=CLASSES, **settings)
    torch.manual_seed(0)
    plain = create()
    twin = copy.deepcopy(plain)
    train(plain, F.cross_entropy, (IMAGES, LABELS), 1)
    train(twin, F.cross_entropy, (IMAGES, LABELS), 1, num_modules=1)
    assert same_state(plain, twin)
    local = train(create(), F.cross_entropy, (IMAGES, LABELS), 1, num_modules=3)
    assert len(local.log) == 2


def test_refused():
    model = classifier()
    for build, message in (
        (
            lambda: LocalLearning(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), F.mse_loss),
            'Sequential',
        ),
        (lambda: LocalLearning(model, F.cross_entropy, backbone='neck'), 'no such submodule'),
        (lambda: LocalLearning(model, F.cross_entropy, num_modules=40), 'give 1 .* to 5'),
        (lambda: LocalLearning(model, F.cross_entropy, auxiliary='DGLs'), 'give one of AugLocal'),
        (lambda: LocalLearning(model, F.cross_entropy, auxiliary='StageTail'), 'StageTail learns'),
        (lambda: LocalLearning(model, F.cross_entropy, invalid_loss='x'), "give 'stop' or 'skip'"),
    ):
        with pytest.raises(LocalLearningError, match=message):
            build()
    local = LocalLearning(model, F.cross_entropy, num_modules=3)
    with pytest.raises(LocalLearningError, match='make it of local.parameters'):
        local(IMAGES, LABELS, sgd(model.parameters()))
    with pytest.raises(LocalLearningError, match='leave out optimizer or scale'):
        local(IMAGES, LABELS, sgd(local.parameters()), scale=lambda loss: loss)
    model.eval()
    with pytest.raises(LocalLearningError, match='evaluation mode'):
        local(IMAGES, LABELS)


@pytest.mark.slow
def test_the_page():
    """Its loops run as they stand, one after the other."""
    text = (Path(__file__).parents[1] / 'docs/plain_pytorch.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) >= 4
    images = torch.rand(2, 3, 64, 64)
    names = dict(loader=[(images, torch.tensor([1, 0]))], pictures=[pictures()])
    for block in blocks:
        exec(block, names)
