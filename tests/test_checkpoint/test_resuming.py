"""The checkpoint that training goes on from."""

import os
from unittest import mock

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.checkpoint import find_resumable


@pytest.fixture()
def work_dir(tmp_path):
    for i in (1, 2, 3):
        path = tmp_path / f'epoch_{i}.pth'
        torch.save(
            dict(
                state_dict=dict(x=torch.ones(999)),
                optimizer={},
                message_hub={},
                meta=dict(epoch=i, iter=i),
            ),
            path,
        )
        os.utime(path, (i, i))
    (tmp_path / 'last_checkpoint').write_text(str(path))
    return tmp_path


def spoil(path):
    path.write_bytes(path.read_bytes()[:-1000])


def test_the_last_one(work_dir):
    assert find_resumable(str(work_dir)) == str(work_dir / 'epoch_3.pth')
    torch.save(dict(state_dict={}), work_dir / 'weights.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert find_resumable(str(work_dir)) == str(work_dir / 'epoch_2.pth')


@pytest.mark.parametrize('pointer', ['', 'absent.pth', None])
def test_without_a_pointer_the_newest_one(pointer, work_dir):
    (work_dir / 'last_checkpoint').unlink()
    if pointer is not None:
        (work_dir / 'last_checkpoint').write_text(pointer and str(work_dir / pointer))
    assert find_resumable(str(work_dir)) == str(work_dir / 'epoch_3.pth')


def test_the_last_usable_one_is_taken_and_named(work_dir, caplog):
    spoil(work_dir / 'epoch_3.pth')
    (work_dir / 'epoch_2.pth').write_bytes(b'')
    with mock.patch('fba_mm.checkpoint.resuming.print_log') as log:
        assert find_resumable(str(work_dir)) == str(work_dir / 'epoch_1.pth')
    said = [call.args[0] for call in log.call_args_list]
    assert 'epoch_3.pth is corrupt' in said[0] and said[0].endswith('it is skipped')
    assert 'epoch_2.pth is corrupt' in said[1]
    assert said[2] == f'Going on from {work_dir}/epoch_1.pth'


def test_none_that_is_usable(work_dir):
    for i in (1, 2, 3):
        spoil(work_dir / f'epoch_{i}.pth')
    with pytest.raises(LocalLearningError, match='epoch_3.pth is corrupt.*There is no other'):
        find_resumable(str(work_dir))


def test_none_at_all(tmp_path):
    assert find_resumable(str(tmp_path)) is None
