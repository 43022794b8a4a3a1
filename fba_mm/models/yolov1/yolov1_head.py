"""YOLOv1's head: boxes and classes for each cell of a grid."""

import copy
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.utils import filter_scores_and_topk
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...arguments import check_count
from ...errors import LocalLearningError
from ...value_range import check_range
from .grid_targets import GridTargets, grid_targets


@MODELS.register_module()
class YOLOV1Head(BaseDenseHead):
    """Predicts B boxes with a confidence, and one set of class scores, in each cell of a grid.

    Convolutions, then B · 5 + C numbers for each cell without an activation: of each box the centre
    from the cell's corner, the square roots of width and height as shares of the input's, and the
    confidence; then the C class scores. A detection's score is its box's confidence times the
    class score, each taken as a probability.

    Source: Redmon et al., CVPR 2016, section 2. Its two fully connected layers, which fix the
    input's size, are convolutions here, as is usual with ResNet backbones; their batch norm is
    what the backbone has, too. Non-maximum suppression is mmdet's.

    Args:
        num_classes: C.
        in_channels: Channels of the map.
        in_stride: Pixels of the input per position of the map.
        stride: Pixels of the input per cell; a multiple of ``in_stride``. Redmon's 7×7 cells on
            448×448 pixels are 64.
        num_boxes: B.
        feat_channels: Channels of the convolutions.
        stacked_convs: Number of 3×3 convolutions before the last, 1×1 one; at least 1.
        norm_cfg: Normalization of the convolutions; None for none. Without batch norm,
            ``head_batch_size`` of :class:`LocalBackbone` is exact.
        loss: Config of the loss.
        train_cfg: Not used; detectors give it to their heads.
        test_cfg: ``score_thr``, ``nms_pre``, ``min_bbox_size``, ``nms``, ``max_per_img``.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: An argument has a value that doesn't work; in training, boxes that
            belong to more classes than ``num_classes``.

    Example:
        >>> head = YOLOV1Head(num_classes=20, in_channels=512)
        >>> head((torch.rand(1, 512, 14, 14),))[0][0].shape
        torch.Size([1, 30, 14, 14])
    """

    # The loss of a batch is the mean of its images', so that images may come a few at a time.
    loss_is_image_mean = True

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        in_stride: int = 32,
        stride: int = 32,
        num_boxes: int = 2,
        feat_channels: int = 512,
        stacked_convs: int = 2,
        norm_cfg: Optional[dict] = dict(type='BN'),
        loss: dict = dict(type='YOLOV1Loss'),
        train_cfg: Optional[dict] = None,
        test_cfg: Optional[dict] = None,
        init_cfg: Optional[dict] = dict(
            type='Normal', std=0.01, override=dict(name='predict_conv')
        ),
    ):
        super().__init__(init_cfg)
        for name, value in (
            ('num_classes', num_classes),
            ('num_boxes', num_boxes),
            ('stacked_convs', stacked_convs),
            ('feat_channels', feat_channels),
            ('in_stride', in_stride),
            ('stride', stride),
        ):
            check_count(f'YOLOV1Head: {name}', value)
        if stride < in_stride or stride % in_stride:
            raise LocalLearningError(
                f'YOLOV1Head(stride={stride}): give a multiple of in_stride={in_stride}, the '
                'stride of the map that it works on'
            )
        self.num_classes = num_classes
        self.num_boxes = num_boxes
        self.stride = stride
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        convs: List[nn.Module] = []
        for i in range(stacked_convs):
            convs.append(
                ConvModule(
                    in_channels if i == 0 else feat_channels,
                    feat_channels,
                    3,
                    stride=stride // in_stride if i == 0 else 1,
                    padding=1,
                    norm_cfg=norm_cfg,
                    act_cfg=dict(type='LeakyReLU', negative_slope=0.1),
                )
            )
        self.convs = nn.Sequential(*convs)
        self.predict_conv = nn.Conv2d(feat_channels, num_boxes * 5 + num_classes, 1)
        self.loss_fn = MODELS.build(loss)

    def forward(self, x: Tuple[Tensor, ...]) -> Tuple[List[Tensor]]:
        """Raw predictions.

        Args:
            x: The map to work on as the last of a tuple, (N, C, H, W).

        Returns:
            A tuple of one list, as mmdet's heads return them, of one tensor,
            (N, B * 5 + C, S_h, S_w).
        """
        return ([self.predict_conv(self.convs(x[-1]))],)

    def split(self, pred: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, S_h, S_w, B, 4), confidences (N, S_h, S_w, B), classes (N, S_h, S_w, C).

        Args:
            pred: Raw predictions, (N, B * 5 + C, S_h, S_w).
        """
        pred = pred.permute(0, 2, 3, 1)
        boxes = pred[..., : self.num_boxes * 5].unflatten(-1, (self.num_boxes, 5))
        return boxes[..., :4], boxes[..., 4], pred[..., self.num_boxes * 5 :]

    def decode(self, boxes: Tensor) -> Tensor:
        """Boxes as x1, y1, x2, y2 in pixels of the input, (N, S_h, S_w, B, 4).

        Args:
            boxes: From :meth:`split`.
        """
        height, width = boxes.shape[1:3]
        rows = torch.arange(height, device=boxes.device)[:, None, None]
        columns = torch.arange(width, device=boxes.device)[None, :, None]
        x, y, root_w, root_h = boxes.unbind(-1)
        x, y = (x + columns) * self.stride, (y + rows) * self.stride
        w, h = root_w.square() * width * self.stride, root_h.square() * height * self.stride
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)

    def get_targets(
        self,
        grid: Tuple[int, int],
        batch_gt_instances: Sequence[InstanceData],
        batch_gt_instances_ignore: Optional[Sequence[InstanceData]] = None,
    ) -> GridTargets:
        """Targets of a batch.

        Args:
            grid: (S_h, S_w).
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.
            batch_gt_instances_ignore: ``bboxes`` of each image that are neither objects nor
                background.
        """
        labels = [instances.labels for instances in batch_gt_instances]
        check_range(
            torch.cat(labels),
            torch.iinfo(torch.long).min,
            self.num_classes - 1,
            lambda label: (
                f'YOLOV1Head got the class index {label}, but num_classes={self.num_classes}: '
                "set that to the data set's number of classes"
            ),
        )
        return grid_targets(
            [_tensor(instances.bboxes) for instances in batch_gt_instances],
            labels,
            grid,
            self.stride,
            None
            if batch_gt_instances_ignore is None
            or any(instances is None for instances in batch_gt_instances_ignore)
            else [_tensor(instances.bboxes) for instances in batch_gt_instances_ignore],
        )

    def loss_by_feat(
        self,
        preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Optional[Sequence[InstanceData]] = None,
    ) -> Dict[str, Tensor]:
        """The losses of raw predictions.

        Args:
            preds: From :meth:`forward`.
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: See :meth:`get_targets`.
        """
        # Squares of half precision numbers overflow, and their sums more so.
        pred = preds[-1].float()
        targets = self.get_targets(
            tuple(pred.shape[2:]), batch_gt_instances, batch_gt_instances_ignore
        )
        return self.loss_fn(*self.split(pred), targets)

    def predict_by_feat(
        self,
        preds: Sequence[Tensor],
        batch_img_metas: Sequence[dict],
        cfg: Optional[dict] = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> List[InstanceData]:
        """Detections.

        Args:
            preds: From :meth:`forward`.
            batch_img_metas: ``img_shape``, and ``scale_factor`` to rescale.
            cfg: Takes the place of ``test_cfg``.
            rescale: Whether boxes shall be those of the image before it was resized.
            with_nms: Whether to suppress boxes that overlap better ones.

        Returns:
            ``bboxes``, ``scores`` and ``labels`` of each image.
        """
        cfg = copy.deepcopy(self.test_cfg if cfg is None else cfg)
        boxes, confidences, classes = self.split(preds[-1].float())
        boxes = self.decode(boxes).flatten(1, 3)
        scores = confidences.clamp(0, 1)[..., None] * classes.clamp(0, 1)[..., None, :]
        results = []
        for box, score, meta in zip(boxes, scores.flatten(1, 3), batch_img_metas):
            score, labels, kept, _ = filter_scores_and_topk(
                score, cfg.get('score_thr', 0), cfg.get('nms_pre', -1)
            )
            height, width = meta['img_shape'][:2]
            limits = box.new_tensor([width, height, width, height])
            found = InstanceData(
                bboxes=box[kept].clamp(min=0).minimum(limits), scores=score, labels=labels
            )
            results.append(self._bbox_post_process(found, cfg, rescale, with_nms, meta))
        return results


def _tensor(boxes) -> Tensor:
    """Boxes as a tensor, whether or not they are one of mmdet's box types."""
    return getattr(boxes, 'tensor', boxes)
