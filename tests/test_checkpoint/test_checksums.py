"""What was written is what is read, at every door."""

import zipfile

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from fba_mm import LocalLearningError
from fba_mm.checkpoint import find_resumable, guard_checkpoints, read_checkpoint
from fba_mm.checkpoint.checksums import check_sums
from tests.test_tools.in_process import untouched_process


def flip(path, value, bit=6, byte=3):
    """Change one bit of a float that is in the file."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([value]).numpy().tobytes()) + byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture()
def damaged(tmp_path):
    """A checkpoint in which 0.09 has become 3e37."""
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict=dict(x=torch.full((9,), 0.09)),
            optimizer={},
            message_hub={},
            meta=dict(epoch=1, iter=1),
        ),
        path,
    )
    check_sums(path)
    flip(path, 0.09)
    assert torch.load(path)['state_dict']['x'][0] > 1e37  # torch doesn't look.
    return path


def test_a_flipped_bit_is_seen(damaged):
    for trust in (False, True):
        with pytest.raises(LocalLearningError, match='epoch_1.pth is corrupt.*Bad CRC-32'):
            read_checkpoint(str(damaged), trust=trust)
    with pytest.raises(LocalLearningError, match='epoch_1.pth is corrupt.*There is no other'):
        find_resumable(str(damaged.parent))


def test_whichever_bit_is_flipped(tmp_path):
    """The file is refused, or the bit was between what is read."""
    path, weights = tmp_path / 'x.pth', dict(x=torch.full((9,), 0.09), y=torch.arange(5))
    torch.save(weights, path)
    content, refused = path.read_bytes(), 0
    for bit in range(0, len(content) * 8, 97):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(str(path))
        except LocalLearningError:
            refused += 1
        else:
            assert found.keys() == weights.keys(), bit
            assert all(torch.equal(found[name], value) for name, value in weights.items()), bit
    assert refused > 50


@pytest.mark.parametrize('door', ['a path', 'a path that a file was downloaded to', 'bytes'])
def test_mmengine_reads_no_damaged_file(door, damaged):
    def loader(filename, map_location=None):
        with open(damaged, 'rb') as file:
            return torch.load(str(damaged) if door != 'bytes' else file, map_location=map_location)

    with untouched_process():
        CheckpointLoader.register_scheme('shop://', loader, force=True)
        guard_checkpoints()
        load = torch.load
        with pytest.raises(LocalLearningError, match='epoch_1.pth is corrupt.*Bad CRC-32'):
            CheckpointLoader.load_checkpoint(str(damaged) if door == 'a path' else 'shop://x.pth')
        assert torch.load is load


def test_files_without_sums(tmp_path):
    content = dict(x=torch.ones(3))
    torch.save(content, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    torch.save(content, tmp_path / 'new.pth')
    # As torch.serialization.set_crc32_options(False) leaves them: 0 in place of each sum.
    with zipfile.ZipFile(tmp_path / 'new.pth') as archive:
        sums = [record.CRC.to_bytes(4, 'little') for record in archive.infolist()]
    without = (tmp_path / 'new.pth').read_bytes()
    for one in sums:
        without = without.replace(one, bytes(4))
    (tmp_path / 'without.pth').write_bytes(without)
    with zipfile.ZipFile(tmp_path / 'without.pth') as archive:
        assert archive.testzip() is not None
    for name in ('old', 'without'):
        assert torch.equal(read_checkpoint(str(tmp_path / f'{name}.pth'))['x'], content['x'])


def test_an_open_file_stays_where_it_was(tmp_path):
    torch.save(dict(x=torch.ones(3)), tmp_path / 'x.pth')
    with open(tmp_path / 'x.pth', 'rb') as file:
        check_sums(file)
        assert file.tell() == 0 and torch.load(file)['x'].sum() == 3
