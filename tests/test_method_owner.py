"""A method comes from the class that defines it, whoever inherits it."""

from mmdet.models import RetinaNet

from fba_mm.method_owner import descends_from, is_method_of, method_owner


class RetinaNetOfMine(RetinaNet):
    """Inherits the loss, and replaces the features."""

    def extract_feat(self, batch_inputs):
        return ()


class SingleStageDetector(RetinaNet):
    """A namesake."""

    def loss(self, batch_inputs, batch_data_samples):
        return {}


def test_owners():
    assert method_owner(RetinaNetOfMine, 'loss').__name__ == 'SingleStageDetector'
    assert method_owner(RetinaNetOfMine, 'extract_feat') is RetinaNetOfMine
    assert method_owner([], 'append') is list
    assert method_owner(None, 'loss') is method_owner(RetinaNet, 'not_there') is object


def test_namesakes_of_other_packages():
    stock = dict(packages=('mmdet',), owners=('SingleStageDetector',))
    assert is_method_of(RetinaNetOfMine, 'loss', **stock)
    assert not is_method_of(RetinaNetOfMine, 'extract_feat', **stock)
    assert not is_method_of(SingleStageDetector, 'loss', **stock)


def test_descent():
    assert descends_from(RetinaNetOfMine, 'BaseDetector')
    assert descends_from(RetinaNetOfMine, 'other', 'RetinaNet')
    assert not descends_from(RetinaNetOfMine, 'TwoStageDetector')
    assert not descends_from(None, 'RetinaNet')
