from unittest import mock

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture()
def mmpretrain_scope():
    """Names in pipelines are mmpretrain's, as in a config with that default_scope."""
    # Collecting a large process's garbage takes longer than reading the data sets here.
    with DefaultScope.overwrite_default_scope('mmpretrain'), mock.patch(
        'mmengine.dataset.base_dataset.gc'
    ):
        yield
