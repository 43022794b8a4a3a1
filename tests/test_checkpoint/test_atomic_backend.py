"""Files that are there completely, or not at all."""

from pathlib import Path

import pytest

from fba_mm.checkpoint import AtomicBackend, replacing


def files(folder) -> set:
    return {path.name for path in Path(folder).iterdir()}


def test_replacing(tmp_path):
    path = tmp_path / 'folder' / 'file'
    with replacing(path) as file:
        file.write(b'old')
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b'new')
        raise KeyError
    assert path.read_bytes() == b'old' and files(path.parent) == {'file'}
    # What a killed process has left behind is in nobody's way.
    Path(f'{path}.tmp').write_bytes(b'a half')
    with replacing(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new' and files(path.parent) == {'file'}


def test_backend(tmp_path):
    AtomicBackend().put_text('ä', tmp_path / 'text')
    assert AtomicBackend().get_text(tmp_path / 'text') == 'ä'
