"""Configs of MMDetection's own collection train by local learning, and give stock models."""

import copy
import re

import pytest
import torch
from mmengine.config import Config

from fba_mm import LocalBackbone, LocalLearningError, LocalOptimWrapper, localize
from fba_mm.checkpoint import export_checkpoint
from fba_mm.config import load_config
from fba_mm.localize import stock_form
from fba_mm.preflight.building import build_model
from fba_mm.preflight.training import check_training

from .conftest import retinanet
from .local_training import Trainer
from .test_tools.in_process import ROOT

pytestmark = pytest.mark.slow

CONFIGS = [
    'retinanet/retinanet_r50_fpn_1x_coco',
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'atss/atss_r50_fpn_1x_coco',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
]
# Other necks, heads and descendants of ResNet.
MORE = [
    'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
    'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    'retinanet/retinanet_x101-32x4d_fpn_1x_coco',
    'gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco',
    'detr/detr_r50_8xb2-150e_coco',
]
# Sizes that are the heads' own business, made small.
SMALL = dict(fc_out_channels=32, max_per_img=16, nms_pre=50)
# Of ResNet-50's stages.
_WIDTHS = [256, 512, 1024, 2048]


def _shrink(node):
    """Nothing is downloaded, heads are small, and untrained scores are high enough to be seen."""
    if isinstance(node, dict):
        if (node.get('init_cfg') or {}) and 'Pretrained' in str(node['init_cfg']):
            node['init_cfg'] = None
        for key, value in node.items():
            if key in SMALL:
                node[key] = SMALL[key]
            elif key == 'score_thr':
                node[key] = 0.0
            elif key == 'sampler' and 'num' in value:
                value['num'] = 8
            _shrink(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _shrink(item)


def _narrow(model):
    """A quarter of ResNet's channels, where a pyramid reads them all."""
    backbone = model.backbone.get('backbone', model.backbone)
    if backbone.type.endswith('ResNet') and model.get('neck', {}).get('in_channels') == _WIDTHS:
        backbone.base_channels = 16
        model.neck.in_channels = [width // 4 for width in _WIDTHS]


def _three_lines(name: str, folder) -> Config:
    """The config as a user writes it beside a stock one."""
    path = folder / 'adopted.py'
    path.write_text(f"""
_base_ = ['mmdet::{name}.py', '{ROOT}/configs/_base_/fba.py']
model = dict(backbone=dict(_delete_=True, type='LocalBackbone',
                           backbone=_base_.model.backbone, num_modules=4))
optim_wrapper = dict(type='LocalOptimWrapper')
""")
    return load_config(str(path))


def _batch(with_mask: bool, size: int = 64) -> dict:
    """A batch of images with objects of different sizes."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 24, 60, 60]])
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
                batch_input_shape=(size, size),
                pad_shape=(size, size),
            )
        )
        sample.gt_instances = InstanceData(bboxes=boxes.clone(), labels=torch.tensor([1, 2]))
        if with_mask:
            masks = torch.zeros(2, size, size, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(masks.numpy(), size, size)
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    inputs = [
        torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    ]
    return dict(inputs=inputs, data_samples=samples)


def _train_export_compare(cfg: Config, scope: str, size: int = 64):
    _shrink(cfg.model)
    _narrow(cfg.model)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    model.train()
    backbone = model.backbone
    assert isinstance(backbone, LocalBackbone) and backbone.num_modules == 4
    with torch.no_grad():
        for parameter in backbone.parameters():
            # Without ImageNet weights, blocks that start at zero pass no gradient on, ...
            if not parameter.any():
                parameter.normal_(std=0.01)
            # ... and what a hundred fixed norms let grow overflows.
            elif parameter.ndim == 1:
                parameter.mul_(0.5)
    trainer = Trainer(
        model,
        scope=scope,
        optimizer=lambda ps: torch.optim.SGD([p for p in ps if p.requires_grad], lr=1e-3),
    )
    data = _batch('mask_head' in str(cfg.model), size)
    gradients = trainer.gradients(data)
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[f'backbone.{name}']
            assert gradient.isfinite().all(), name
            # A softmax over positions takes no notice of this bias.
            assert gradient.any() or name.endswith('conv_mask.bias'), name
    main = trainer.step(data)
    assert all(torch.tensor(value).isfinite() for value in main.values())
    assert {f'local_{i}.loss' for i in (1, 2, 3)} <= set(trainer.log)
    assert all(torch.as_tensor(value).isfinite().all() for value in trainer.log.values())

    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))
    stock = build_model(stock_form(cfg))
    stock.load_state_dict(exported['state_dict'], strict=True)
    predictions = []
    for one in (model, stock):
        with torch.no_grad():
            torch.manual_seed(0)
            predictions.append(one.eval().test_step(copy.deepcopy(data)))
    assert sum(len(sample.pred_instances) for sample in predictions[0])
    for ours, theirs in zip(*predictions):
        ours, theirs = ours.pred_instances, theirs.pred_instances
        assert set(ours.keys()) == set(theirs.keys()) >= {'bboxes', 'scores', 'labels'}
        for key in ours.keys():  # noqa: SIM118, it iterates over instances
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])), key


@pytest.mark.parametrize('name', CONFIGS)
def test_collection(name, tmp_path):
    """Three lines beside a stock config are all it takes, and localize() writes the same ones."""
    stock = load_config(f'mmdet::{name}.py')
    cfg = _three_lines(name, tmp_path)
    for config in (stock, cfg):
        # Inheriting by name notes where from.
        config.model.pop('_scope_', None)
        config.model.backbone.get('backbone', config.model.backbone).pop('_scope_', None)
        config.optim_wrapper.pop('_scope_', None)
    made = localize(f'mmdet::{name}.py', num_modules=4, auxiliary='shared', slices=False)
    made.model.backbone.pop('auxiliary')  # That of the class.
    assert made.model.backbone.pop('type') == cfg.model.backbone['type'] == 'LocalBackbone'
    assert dict(made.model.backbone) == {k: v for k, v in cfg.model.backbone.items() if k != 'type'}
    assert {k: v for k, v in made.model.items() if k != 'backbone'} == {
        k: v for k, v in cfg.model.items() if k != 'backbone'
    }
    assert {k: v for k, v in made.optim_wrapper.items() if k != 'apply'} == dict(cfg.optim_wrapper)
    assert made.custom_hooks[0]['type'] == cfg.custom_hooks[0]['type'] == 'FBAHook'
    assert stock_form(cfg).model == stock.model
    assert stock_form(cfg).optim_wrapper == stock.optim_wrapper
    _train_export_compare(cfg, scope='past')


@pytest.mark.parametrize('name', MORE)
def test_more_of_the_collection(name):
    # mmcv's compiled deformable convolution takes no map smaller than its kernel.
    size = 96 if name.startswith('dcn/') else 64
    _train_export_compare(localize(f'mmdet::{name}.py', num_modules=4), scope='all', size=size)


@pytest.mark.parametrize(
    'name',
    ['hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco', 'tridentnet/tridentnet_r50-caffe_1x_coco'],
)
def test_backbone_that_cannot_be_cut_yet(name):
    cfg = localize(f'mmdet::{name}.py', num_modules=4)
    _shrink(cfg.model)
    with pytest.raises(LocalLearningError, match='cannot be cut: .*num_modules=1') as info:
        build_model(cfg)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('name', ['detr/detr_r50_8xb2-150e_coco'])
def test_config_is_as_good_as_before_after_a_model_was_built(name):
    """The runner builds the model once more, from the same config."""
    cfg = localize(f'mmdet::{name}.py', num_modules=4)
    before = copy.deepcopy(cfg.model)
    build_model(cfg)
    assert cfg.model == before


@pytest.mark.parametrize('hooks', ['', "custom_hooks = [dict(type='CheckInvalidLossHook')]"])
@pytest.mark.parametrize('imports', ['', "custom_imports = dict(imports=['my_project'])"])
def test_a_project_of_ones_own(hooks, imports, tmp_path, monkeypatch):
    """The config of docs/usage.md, on one with and without hooks and imports of its own."""
    (text,) = re.findall(
        r"```python\n(_base_ = './my_detector.py'.*?)```",
        (ROOT / 'docs/usage.md').read_text(),
        re.S,
    )
    (tmp_path / 'my_project.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    model = retinanet(num_modules=None)
    (tmp_path / 'my_detector.py').write_text(f"""
default_scope = 'mmdet'
model = {model}
train_dataloader = dict()
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=.1))
{hooks}
{imports}
""")
    (tmp_path / 'my_detector_fba.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'my_detector_fba.py')
    own = [dict(type='CheckInvalidLossHook')] if hooks else []
    assert [dict(hook) for hook in cfg.custom_hooks] == [*own, dict(type='FBAHook')]
    assert cfg.custom_imports.imports == ['fba_mm', 'my_project']
    assert cfg.model_wrapper_cfg.type == 'LocalDataParallel'
    wrapper = check_training(cfg, build_model(cfg))
    assert isinstance(wrapper, LocalOptimWrapper) and wrapper.optimizer.defaults['lr'] == 0.1
    assert stock_form(cfg).model == Config(dict(model=model)).model
