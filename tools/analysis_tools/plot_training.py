r"""Several trainings in one picture: loss, metric, memory and time, from MMEngine's own logs.

    python tools/analysis_tools/plot_training.py work_dirs/bp work_dirs/fba --labels BP FBA \
        --x time --out training.png

Trainings by local learning get a row of their own with the losses of their modules; with
``LocalAccuracyHook`` and ``LocalMemoryHook`` in ``custom_hooks``, their accuracies and memory, too.
"""

import argparse
from pathlib import Path

from fba_mm import command_line
from fba_mm.analysis.training_log import X_AXES, TrainingLog
from fba_mm.analysis.training_plot import draw_training
from fba_mm.errors import LocalLearningError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the logs of trainings')
    parser.add_argument('work_dirs', nargs='+', help='work directories, or their scalars.json')
    parser.add_argument(
        '--labels', nargs='+', help="what to call them (default: the folders' names)"
    )
    parser.add_argument('--x', choices=list(X_AXES), default='iterations', help='horizontal axis')
    parser.add_argument(
        '--metrics', nargs='+', metavar='NAME', help='of the validation (default: the main one)'
    )
    parser.add_argument('--title', default='Training', help='of the picture')
    parser.add_argument('--out', default='work_dirs/training.png', help='a PNG file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    labels = args.labels or [Path(work_dir).resolve().name for work_dir in args.work_dirs]
    if len(labels) != len(args.work_dirs):
        raise LocalLearningError(
            f'--labels: {len(labels)} for {len(args.work_dirs)} trainings, give as many'
        )
    if len(set(labels)) < len(labels):
        raise LocalLearningError('two trainings have the same name: give each its own by --labels')
    command_line.check_writable(Path(args.out).parent, '--out')
    logs = {label: TrainingLog.read(folder) for label, folder in zip(labels, args.work_dirs)}
    draw_training(logs, args.out, args.x, args.metrics, args.title)
    print(args.out)


if __name__ == '__main__':
    command_line.run(main)
