"""Training that runs out of memory ends with the next way to try."""

import pytest
import torch
from mmengine.config import Config

from fba_mm import localize
from fba_mm.analysis import predict_memory
from fba_mm.errors import LocalLearningError
from fba_mm.planning.out_of_memory import next_way_when_out_of_memory

from ..test_analysis.small_configs import classifier


def sized(size: int = 64):
    """A classifier whose config tells the size of its images."""
    cfg = classifier()
    cfg.train_dataloader = dict(
        batch_size=8, dataset=dict(pipeline=[dict(type='Resize', scale=(size, size))])
    )
    return cfg


@pytest.mark.slow
def test_the_next_way():
    cfg = localize(sized(), 2)
    taken = predict_memory(cfg, (8, 3, 64, 64)).total
    with pytest.raises(LocalLearningError) as raised, next_way_when_out_of_memory(cfg):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    text = str(raised.value)
    assert text.startswith('out of memory (') and '\n' not in text
    assert 'try "accumulation, 4 images at a time" next, with --memory-budget 4MiB' in text
    assert f'{taken / 2**20:.1f} MiB as it was' in text


def test_the_allocator_of_the_cpu():
    """What torch really raises."""
    words = 'out of memory .*DefaultCPUAllocator.*batch_size'
    with pytest.raises(LocalLearningError, match=words), next_way_when_out_of_memory(Config()):
        torch.empty(2**60, dtype=torch.uint8)


def test_memory_that_suffices():
    with next_way_when_out_of_memory(Config()):
        pass


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match='mat1'), next_way_when_out_of_memory(Config()):
        raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')
