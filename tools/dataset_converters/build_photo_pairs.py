"""Build pairs of photos in high and low resolution, to train and test super-resolution.

Examples:
    python tools/dataset_converters/build_photo_pairs.py data/photo_pairs    # nothing to download
    python tools/dataset_converters/build_photo_pairs.py data/Set5 --images FOLDER_WITH_PICTURES
"""

import argparse
import json

from fba_mm import command_line
from fba_mm.datasets import build_photo_pairs
from fba_mm.errors import LocalLearningError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Build pairs of photos in high and low resolution (x2, x3, x4).'
    )
    parser.add_argument('out', help='folder to write: new, empty or of a former build')
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='with pictures of your own (default: '
        'the photos that scikit-image and scikit-learn install)',
    )
    parser.add_argument(
        '--tile-size',
        type=int,
        metavar='PIXELS',
        help='cut training photos into tiles (default: 192, and pictures of your own stay whole)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a former build of other settings, or a damaged one',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        root = build_photo_pairs(args.out, args.images, args.tile_size, args.overwrite)
    except LocalLearningError as error:
        raise LocalLearningError(
            str(error)
            .replace('overwrite=True', '--overwrite')
            .replace('tile_size=', '--tile-size ')
            .replace('images=', '--images ')
        ) from error
    print(root)
    for split, count in json.loads((root / 'dataset.json').read_text())['files'].items():
        print(f'{split or "images":6} {count} pairs for each of x2, x3, x4')


if __name__ == '__main__':
    command_line.run(main)
