"""How often a step makes the host wait for a value, which stalls a GPU. Counted on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..conftest import NUM_CLASSES, batch, build, retinanet
from ..local_training import Trainer

aten = torch.ops.aten
# Ops whose results, or whose results' sizes, depend on values.
_WAITS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.masked_select.default,
)
_INDEXING = (aten.index.Tensor, aten.index_put_.default)


class Synchronizations(TorchDispatchMode):
    """Counts them: values that are read, and indices that are found by a mask."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func in _INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += masks or func in _WAITS
        return func(*args, **(kwargs or {}))


def count(config) -> int:
    config['bbox_head']['loss_cls'] = dict(type='SlicedFocalLoss', use_sigmoid=True)
    trainer = Trainer(build(config), apply='eager')
    trainer.step(batch())
    with Synchronizations() as found:
        trainer.hook.before_train_iter(trainer.runner, 0)
        trainer.model.train_step(batch(), trainer.optim_wrapper)
        trainer.hook.after_train_iter(trainer.runner, 0)
    return found.count


@pytest.mark.parametrize('num_modules', [4, 'blocks'])
def test_a_module_costs_two(num_modules):
    """The L1 loss asks whether there are objects, and the hook whether the loss is finite.

    The rest is the model's own assignment of targets and its losses of each level.
    """
    head = dict(type='LightRetinaNet', num_classes=NUM_CLASSES, channels=16)
    stock = count(retinanet(num_modules=1))
    local = retinanet(num_modules=num_modules, auxiliary=dict(type='SLM', head=head))
    modules = len(build(local).backbone.auxiliary)
    assert stock > 20 and count(local) - stock == 2 * modules
