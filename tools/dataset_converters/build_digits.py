r"""Build the data set of handwritten digits on photos, in COCO format and without a download.

Example:
    python tools/dataset_converters/build_digits.py           # what configs/demo trains on
    python tools/dataset_converters/build_digits.py data/digit_masks --train 800 --size 96 \
        --digits 4 8 --digit-size 28 48 --masks
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

# Works from a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fba_mm.datasets import build_digits_on_photos  # noqa: E402
from fba_mm.errors import LocalLearningError  # noqa: E402


def image_size(text: str):
    """``192`` or ``192x256`` (height x width)."""
    numbers = [int(number) for number in text.split('x')]
    return numbers[0] if len(numbers) == 1 else numbers


def parse_args():
    parser = argparse.ArgumentParser(
        description='Build the data set of handwritten digits on photos.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        'out',
        nargs='?',
        default='data/digits_on_photos',
        help='folder to write: new, empty or of a former build',
    )
    parser.add_argument('--train', type=int, default=800, metavar='N', help='training images')
    parser.add_argument('--val', type=int, default=120, metavar='N', help='validation images')
    parser.add_argument(
        '--size',
        type=image_size,
        default=160,
        metavar='S',
        help='image size in px, one number or HEIGHTxWIDTH',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the drawing')
    parser.add_argument(
        '--digits',
        type=int,
        nargs=2,
        default=(3, 8),
        metavar=('LEAST', 'GREATEST'),
        help='digits that are tried per image',
    )
    parser.add_argument(
        '--digit-size',
        type=int,
        nargs=2,
        default=(12, 128),
        metavar=('LEAST', 'GREATEST'),
        help='longer side of a digit in px',
    )
    parser.add_argument(
        '--masks', action='store_true', help='also write the class of each pixel, for segmentation'
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a former build of other settings, or a damaged one',
    )
    return parser.parse_args()


def summarize(root: Path) -> str:
    lines = [str(root)]
    for split in ('train', 'val'):
        coco = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
        boxes = Counter(annotation['category_id'] for annotation in coco['annotations'])
        per_class = '  '.join(f'{c["name"]}: {boxes[c["id"]]}' for c in coco['categories'])
        lines.append(
            f'{split:5} {len(coco["images"])} images, {sum(boxes.values())} boxes ({per_class})'
        )
    return '\n'.join(lines)


def main() -> int:
    args = parse_args()
    try:
        root = build_digits_on_photos(
            args.out,
            num_train=args.train,
            num_val=args.val,
            image_size=args.size,
            seed=args.seed,
            digits_per_image=args.digits,
            digit_size=args.digit_size,
            masks=args.masks,
            overwrite=args.overwrite,
        )
    except LocalLearningError as e:
        print('error:', str(e).replace('overwrite=True', '--overwrite'), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'interrupted: {args.out} is as it was', file=sys.stderr)
        return 130
    print(summarize(root))
    return 0


if __name__ == '__main__':
    sys.exit(main())
