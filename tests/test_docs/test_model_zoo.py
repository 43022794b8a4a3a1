"""Metafiles, model-index.yml and the page agree with each other and with the configs."""

import importlib.util

import pytest

from ..test_configs import COMPLETE
from ..test_tools.in_process import ROOT


@pytest.fixture(scope='module')
def zoo():
    spec = importlib.util.spec_from_file_location('model_zoo', ROOT / 'docs/model_zoo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_config_is_in_one_metafile(zoo):
    named = [model['Config'] for model in zoo.models()]
    assert sorted(named) == sorted(f'configs/{name}' for name in COMPLETE)
    names = [model['Name'] for model in zoo.models()]
    assert len(set(names)) == len(names)


def test_each_entry_resolves(zoo):
    files = [zoo.read(ROOT / name) for name in zoo.read(ROOT / 'model-index.yml')['Import']]
    collections = {one['Name']: one for file in files for one in file.get('Collections', ())}
    for collection in collections.values():
        assert (ROOT / collection['README']).exists()
        assert collection['Name'] == 'Back-propagation' or collection['Paper']['Title']
    for model in zoo.models():
        assert model['In Collection'] in collections, model['Name']
        for key in ('Results', 'Reported Results'):
            for result in model.get(key, ()):
                assert result['Task'] and result['Dataset'] and result['Source'], model['Name']
                assert all(isinstance(v, (int, float)) for v in result['Metrics'].values())
        for result in model.get('Results', ()):
            # Ours: the page that has the figure has the command, too.
            text = (ROOT / result['Source']).read_text()
            assert all(str(value) in text for value in result['Metrics'].values()), model['Name']


def test_the_page_is_written_from_them(zoo):
    assert zoo.PAGE.read_text(encoding='utf-8') == zoo.page(), 'run make model-zoo'
    assert 'not measured' not in zoo.page()
