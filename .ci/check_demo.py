"""Look at what `make demo` has left: scores, the same ones in its table, and a figure.

    python .ci/check_demo.py work_dirs/demo OUTPUT

OUTPUT is a file with what the demo printed. Ends in an error that says what is wrong.
"""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def check_scores(scores, output):
    """Two models or more, whose scores are percentages and stand in a row of the table."""
    if len(scores) < 2:
        raise SystemExit(f'error: scores of {len(scores)} models; a comparison needs two')
    for name, row in scores.items():
        for key in ('mIoU', 'mAcc', 'aAcc'):
            if not math.isfinite(row[key]) or not 0 < row[key] <= 100:
                raise SystemExit(f'error: {key} of {name} is {row[key]}, no percentage above 0')
        lines = [
            line for line in output.splitlines() if re.search(rf'(?<!\w){re.escape(name)}\s', line)
        ]
        numbers = [float(word) for line in lines for word in re.findall(r'\d+\.\d+', line)]
        if not any(abs(number - row['mIoU']) < 0.051 for number in numbers):
            raise SystemExit(f'error: no row of the table has mIoU {row["mIoU"]:.2f} of {name}')


def check_figure(path):
    """Large enough to be read, and with something in each of its quarters."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert('RGB'))
    height, width = pixels.shape[:2]
    if min(height, width) < 200:
        raise SystemExit(f'error: {path} has only {width}x{height} pixels')
    for half, side in zip(np.array_split(pixels, 2), ('upper', 'lower')):
        for quarter in np.array_split(half, 2, axis=1):
            if quarter.std(axis=(0, 1)).max() < 5:
                raise SystemExit(f'error: a quarter of the {side} half of {path} is blank')


def main():
    folder, output = map(Path, sys.argv[1:])
    for name in ('scores.json', 'demo.png'):
        if not (folder / name).is_file():
            raise SystemExit(f'error: the demo has left no {folder / name}')
    check_scores(json.loads((folder / 'scores.json').read_text()), output.read_text())
    check_figure(folder / 'demo.png')
    print(f'{folder}: table and figure are there')


if __name__ == '__main__':
    main()
