"""A data set in PASCAL VOC's form that says what it leaves out, registered with mmdet.

Importing this module imports mmdet, which :mod:`fba_mm` itself does not: configs that use it say
``custom_imports = dict(imports=['fba_mm', 'fba_mm.datasets.checked_voc'])``.
"""

import logging
import os
from typing import List, Sequence

from mmdet.datasets import VOCDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .voc_annotations import VOCFolder, refuse_or_skip


@DATASETS.register_module()
class CheckedVOCDataset(VOCDataset):
    """mmdet's ``VOCDataset`` with every annotation file looked at before one is used.

    Missing, empty and unreadable files, missing images, classes that aren't in ``metainfo``, boxes
    that leave their image and boxes without an area are reported by file.

    Args:
        on_fault: ``'refuse'``: one faulty file, and nothing is trained. ``'skip'``: images with
            faulty files are left out.
        leave_out: Names of classes whose objects are left out on purpose, for training on some of
            the classes that the files have.
        **kwargs: Those of ``VOCDataset``.

    Raises:
        LocalLearningError: There are faults and ``on_fault`` is ``'refuse'``.

    Example:
        >>> dataset = dict(
        ...     type='fba_mm.CheckedVOCDataset', on_fault='skip', data_root='data/VOCdevkit/',
        ...     ann_file='VOC2007/ImageSets/Main/trainval.txt',
        ...     data_prefix=dict(sub_data_root='VOC2007/'))
    """

    def __init__(self, on_fault: str = 'refuse', leave_out: Sequence[str] = (), **kwargs):
        self.on_fault = on_fault
        self.leave_out = leave_out
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        """What ``VOCDataset`` reads of the files that have no fault."""
        if self.backend_args:
            print_log(
                f'{self.ann_file}: files that backend_args reads are not checked',
                'current',
                logging.WARNING,
            )
            return super().load_data_list()
        folder = VOCFolder(
            self.ann_file,
            self.sub_data_root,
            self.metainfo['classes'],
            self.leave_out,
            self.img_subdir,
            self.ann_subdir,
        )
        skipped = refuse_or_skip(folder, self.on_fault, self.ann_file)
        self.cat2label = {name: i for i, name in enumerate(folder.classes)}
        return [
            self.parse_data_info(
                dict(
                    img_id=name,
                    file_name=os.path.join(self.img_subdir, f'{name}.jpg'),
                    xml_path=folder.paths(name)[1],
                )
            )
            for name in folder.names()
            if name not in skipped
        ]

    def filter_data(self) -> List[dict]:
        """What ``filter_cfg`` leaves, and a line in the log that names the others."""
        kept = super().filter_data()
        if len(kept) < len(self.data_list):
            names = {info['img_id'] for info in kept}
            gone = [info['img_id'] for info in self.data_list if info['img_id'] not in names]
            print_log(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves out {len(gone)} of '
                f'{len(self.data_list)} images, without objects or too small: {", ".join(gone)}',
                'current',
            )
        return kept
