"""Models of configs, and errors that a user can read."""

import pytest
from mmengine.registry import MODELS

from fba_mm import LocalLearningError
from fba_mm.preflight.building import build_model, readable_errors
from tests.test_analysis.small_configs import classifier


def test_the_data_preprocessor_may_stand_beside_the_model():
    assert build_model(classifier()).data_preprocessor.num_classes == 5


@pytest.mark.parametrize(
    'raised, said',
    [
        (
            KeyError('Nothing is not in the mmdet::model registry. Please check whether ...'),
            r"nothing is registered as 'Nothing' \(mmdet::model registry\), check its spelling",
        ),
        (
            KeyError('ReflectPad is not in the mmpretrain::transform registry. Please ...'),
            r"registered as 'ReflectPad' .*, it is this package's: set type='fba_mm.ReflectPad'$",
        ),
        (KeyError('a'), r'KeyError: a\): check the config$'),
        (ValueError('one\n  two'), r'ValueError: one two\): check the config$'),
        (AssertionError(), r'AssertionError: no reason given\): check the config$'),
        (ValueError('x' * 1000), r'x{300}\): check the config$'),
    ],
)
def test_readable_errors(raised, said):
    with pytest.raises(LocalLearningError, match=said) as info, readable_errors('it failed'):
        raise raised
    assert info.value.__cause__ is raised and str(info.value).startswith('it failed')


def test_an_assertion_without_words_is_quoted():
    with pytest.raises(LocalLearningError) as info, readable_errors('it failed'):
        MODELS.build(dict(type='mmdet.FPN', in_channels=8, out_channels=8, num_outs=1))
    assert '(AssertionError: assert isinstance(in_channels, list))' in str(info.value)


def test_own_errors_pass():
    error = LocalLearningError('as it is')
    with pytest.raises(LocalLearningError) as info, readable_errors('it failed'):
        raise error
    assert info.value is error
