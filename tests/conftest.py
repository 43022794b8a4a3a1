"""Small detectors and batches that the tests share."""

import copy
import re
from importlib.util import find_spec
from typing import Optional, Sequence

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope

import fba_mm  # noqa: F401
from fba_mm.analysis.memory_fit import young_garbage
from fba_mm.compat.torch_versions import autocasts_to

NUM_CLASSES = 3
ABSENT = [name for name in ('mmpretrain', 'mmseg', 'mmagic') if find_spec(name) is None]
needs_float16 = pytest.mark.skipif(
    not autocasts_to('cpu', torch.float16), reason='float16 on a CPU needs torch 2.2'
)


def needs(package: str) -> pytest.MarkDecorator:
    """Marks a test that would go wrong in another way, or not at all, where a package is absent."""
    return pytest.mark.skipif(package in ABSENT, reason=f'needs {package}')


def wanted_package(error: BaseException, absent: Sequence[str] = ABSENT) -> Optional[str]:
    """The package that isn't installed for want of which a test failed, or one of several.

    An assertion that merely mentions a package is a failure, as is whatever fails where nothing is
    absent.

    Args:
        error: What the test raised.
        absent: Packages that aren't installed.
    """
    for name in absent:
        # As Python says it, OpenMMLab and this package; an assertion may quote what a tool printed.
        said = rf"No module named '{name}\b|\b{name}\b.{{0,60}}not installed|needs {name}\b"
        if re.search(said if isinstance(error, AssertionError) else rf'\b{name}\b', str(error)):
            return name
    # A class that nobody has registered goes by its own name alone.
    unknown = re.search(r"(\w+)'? (?:is not in the |\()\S+ registry", str(error))
    if absent and unknown:
        return f'{unknown[1]} of {" or ".join(absent)}'
    cause = error.__cause__ or error.__context__
    return None if cause is None else wanted_package(cause, absent)


def _skip_for_want_of_a_package(report, error: BaseException) -> None:
    """A test that fails because of a package that isn't installed is skipped, and names it."""
    name = wanted_package(error) if report.failed else None
    if name is not None:
        report.outcome = 'skipped'
        report.longrepr = (str(report.fspath), 0, f'Skipped: needs {name}')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.excinfo is not None:
        _skip_for_want_of_a_package(report, call.excinfo.value)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    report = (yield).get_result()
    if report.failed:
        # The whole text of a traceback, which shows lines of the file as well.
        _skip_for_want_of_a_package(report, AssertionError(str(report.longrepr)))


@pytest.fixture(scope='session', autouse=True)
def _young_garbage():
    """Garbage is looked for in what tests make: imports leave a million other objects."""
    with young_garbage():
        yield


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    # init_weights() logs every parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    # A scope of its own for each test: MMEngine keeps the last one made.
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request):
    """Where to compute."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    return request.param


def retinanet(depth: int = 18, num_modules=4, norm: str = 'BN', **backbone) -> dict:
    """A narrow RetinaNet that trains from scratch; ``num_modules=None`` leaves it unwrapped."""
    auxiliary = backbone.pop('auxiliary', dict(type='SLM'))
    resnet = dict(
        type='mmdet.ResNet',
        depth=depth,
        base_channels=8,
        stem_channels=8,
        norm_cfg=dict(type=norm, num_groups=4) if norm == 'GN' else dict(type=norm),
        norm_eval=False,
        # Otherwise blocks start as identities: nothing that goes wrong in one could be seen.
        zero_init_residual=False,
    )
    resnet.update(backbone)
    expansion = 1 if resnet['depth'] < 50 else 4
    width = resnet['base_channels'] * expansion
    return dict(
        type='mmdet.RetinaNet',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=32
        ),
        backbone=resnet
        if num_modules is None
        else dict(
            type='LocalBackbone', backbone=resnet, num_modules=num_modules, auxiliary=auxiliary
        ),
        neck=dict(
            type='FPN',
            in_channels=[width * 2**i for i in range(4)],
            out_channels=16,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        bbox_head=retina_head(),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=1000,
            min_bbox_size=0,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=100,
        ),
    )


def retina_head(channels: int = 16, num_classes: int = NUM_CLASSES) -> dict:
    """A RetinaNet head with one convolution."""
    return dict(
        type='RetinaHead',
        num_classes=num_classes,
        in_channels=channels,
        stacked_convs=1,
        feat_channels=channels,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=1,
            ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    )


def own_head(channels: int = 16, num_classes: int = NUM_CLASSES) -> dict:
    """An auxiliary network with a neck and a head of its own."""
    model = retinanet(num_modules=None)
    return dict(
        type='SLM',
        channels=channels,
        head=dict(
            type='mmdet.RetinaNet',
            neck=dict(
                type='FPN',
                out_channels=channels,
                start_level=1,
                add_extra_convs='on_input',
                num_outs=5,
            ),
            bbox_head=retina_head(channels, num_classes),
            train_cfg=model['train_cfg'],
            test_cfg=model['test_cfg'],
        ),
    )


def build(cfg: dict) -> torch.nn.Module:
    """Build a model from a copy of its config, with weights that depend on the seed alone."""
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(copy.deepcopy(cfg)))
    model.init_weights()
    return model.train()


def batch(size: int = 64, images: int = 2, seed: int = 0) -> dict:
    """A batch as a dataloader gives it: uint8 images and samples with two boxes each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for _ in range(images):
        inputs.append(
            torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        )
        corner = torch.rand(2, 2, generator=generator) * size * 0.4
        extent = size * (0.25 + 0.25 * torch.rand(2, 2, generator=generator))
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
                batch_input_shape=(size, size),
                pad_shape=(size, size),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], 1),
            labels=torch.randint(0, NUM_CLASSES, (2,), generator=generator),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
