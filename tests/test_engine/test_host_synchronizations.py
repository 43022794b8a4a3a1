"""How often a step makes the host wait for a value, which stalls a GPU. Counted on the CPU."""

import sys
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fba_mm import localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.preflight.building import build_model

from ..conftest import NUM_CLASSES, batch, build, retinanet
from ..local_training import Trainer
from ..test_analysis.small_configs import classifier
from ..test_local.test_auxiliary.test_all_methods import METHODS
from ..test_models.test_yolov1.small_yolov1 import small_head, yolov1
from ..test_projects.test_bank_uses import SCOPES, USES

aten = torch.ops.aten
# Ops whose results, or whose results' sizes, depend on values.
_WAITS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.masked_select.default,
)
_INDEXING = (aten.index.Tensor, aten.index_put_.default)


# Go on without a look at values that are not the CPU's, or look at some that always are.
_READ_ON_THE_CPU_ALONE = ('value_range.py', 'assigned_targets.py', 'local_step.py')


class Synchronizations(TorchDispatchMode):
    """Counts them: values that are read, indices found by a mask, tensors taken to the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func in _INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += masks or func in _WAITS
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        # What no op of a tensor on the CPU tells of.
        with ExitStack() as stack:
            for name in ('tolist', 'numpy', 'cpu'):
                original = getattr(torch.Tensor, name)

                def noted(tensor, *args, original=original, **kwargs):
                    caller = sys._getframe(1).f_code.co_filename
                    self.count += not caller.endswith(_READ_ON_THE_CPU_ALONE)
                    return original(tensor, *args, **kwargs)

                stack.enter_context(mock.patch.object(torch.Tensor, name, noted))
            self._patches = stack.pop_all()
        return super().__enter__()

    def __exit__(self, *exc_info):
        self._patches.close()
        return super().__exit__(*exc_info)


def count(model, data=batch, scope='past', **kwargs) -> int:
    """In the second step of a model."""
    trainer = Trainer(model, apply='eager', scope=scope, **kwargs)
    trainer.step(data())
    given = data()
    with Synchronizations() as found:
        trainer.hook.before_train_iter(trainer.runner, 0)
        trainer.model.train_step(given, trainer.optim_wrapper)
        trainer.hook.after_train_iter(trainer.runner, 0)
    return found.count


def detector(config):
    config['bbox_head']['loss_cls'] = dict(type='SlicedFocalLoss', use_sigmoid=True)
    return build(config)


@pytest.mark.parametrize('scope', ['past', 'all'])
@pytest.mark.parametrize('num_modules', [4, 'blocks'])
def test_a_module_costs_two(num_modules, scope):
    """Mmdet's L1 loss asks whether there are objects, and the hook whether the loss is finite.

    The rest is the model's own assignment of targets and its losses of each level, and the log's.
    """
    head = dict(type='LightRetinaNet', num_classes=NUM_CLASSES, channels=16)
    stock = count(detector(retinanet(num_modules=1)))
    local = retinanet(num_modules=num_modules, auxiliary=dict(type='SLM', head=head))
    modules = len(build(local).backbone.auxiliary)
    assert stock > 20 and count(detector(local), scope=scope) - stock == 2 * modules + 1


@pytest.mark.parametrize('head', ['own', 'shared'])
def test_a_module_of_yolov1_costs_one(head):
    """That the hook asks for: targets and losses ask for nothing."""
    own = dict(head=dict(type='YOLOV1', bbox_head=small_head())) if head == 'own' else {}
    stock = count(build(yolov1(num_modules=1)))
    local = count(build(yolov1(num_modules=4, auxiliary=dict(type='SLM', **own))))
    assert local - stock == 3 + 1 and stock < 3


@pytest.mark.parametrize('method', [*METHODS, *USES])
def test_a_module_of_a_classifier_costs_one(method):
    if method in METHODS:
        auxiliary = dict(METHODS[method], num_classes=5)
    else:
        auxiliary = dict(type='SLM', bank_use=USES[method])
    torch.manual_seed(0)

    def model(**kwargs):
        found = build_model(localize(classifier('BN'), **kwargs)).train()
        for part in found.modules():
            if hasattr(part, 'cal_acc'):
                part.cal_acc = False
        return found

    stock = count(model(num_modules=1), images)
    local = model(num_modules=3, auxiliary=auxiliary)
    scope = SCOPES.get(method, 'past')
    assert count(local, images, scope) - stock == len(local.backbone.auxiliary) + 1


def images():
    """A batch of the classifier."""
    model = build_model(classifier('BN'))
    return synthetic_batch(model, (4, 3, 32, 32))
