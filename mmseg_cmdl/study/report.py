"""What a study found: from the result files to one dictionary; from that to tables and words."""

import base64
import html
import re
import statistics as plain_statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import mmengine

from ..command_line import text_table
from .jobs import describe
from .plan import write_json
from .recorder import read_result, rounded, unpack_areas
from .statistics import Estimate, bootstrap_images, estimate, failures, holm, verdict

SCORES = ('mIoU', 'mAcc', 'aAcc')


def read_study(folder: Path) -> tuple:
    """The plan and all results of a study.

    Returns:
        tuple: plan.json's content, and {arm: {seed: result}} in the plan's order.

    Raises:
        ValueError: There is no study, or a result is of another config than the plan's.
    """
    folder = Path(folder)
    if not (folder / 'plan.json').is_file():
        raise ValueError(f'{folder} has no plan.json, so it is not the folder of a study')
    plan = mmengine.load(folder / 'plan.json')
    runs: Dict[str, dict] = {arm: {} for arm in plan['arms']}
    for path in sorted((folder / 'results').glob('*.json')):
        run = read_result(path)
        arm = plan['arms'].get(run['arm'])
        if arm is None:
            raise ValueError(f'{path} is of the arm {run["arm"]!r}, which plan.json does not list')
        if run['config'] != arm['fingerprint'] and run['state'] != 'failed':
            raise ValueError(f'{path} is of another config than plan.json has for {run["arm"]!r}')
        runs[run['arm']][run['seed']] = run
    return plan, {arm: dict(sorted(found.items())) for arm, found in runs.items()}


def _scored(runs: Dict[int, dict]) -> Dict[int, dict]:
    return {s: r for s, r in runs.items() if r['state'] != 'failed' and r['mIoU'] is not None}


def paired(
    first: Dict[int, dict], second: Dict[int, dict], score: str = 'mIoU'
) -> Dict[int, float]:
    """{seed: second - first} of the seeds that both have a score of."""
    seeds = [seed for seed in first if seed in second]
    return {seed: second[seed][score] - first[seed][score] for seed in seeds}


def _ratio(first: Dict[int, dict], second: Dict[int, dict], keys: Sequence[str]) -> Optional[float]:
    """Median over the common seeds of the first key that all runs have."""
    for key in keys:
        pairs: List[Any] = [(first[s].get(key), second[s].get(key)) for s in first if s in second]
        if pairs and all(a and b for a, b in pairs):
            return plain_statistics.median(b / a for a, b in pairs)
    return None


def _classes(first: Dict[int, dict], second: Dict[int, dict], names: Sequence[str]) -> List[dict]:
    """Difference of each class's IoU; the p values adjusted over the classes."""
    out = []
    for i, name in enumerate(names):
        seeds = [s for s in first if s in second]
        pairs = [(first[s]['IoU'][i], second[s]['IoU'][i]) for s in seeds]
        found = estimate([b - a for a, b in pairs if a is not None and b is not None])
        out.append(dict(name=name, **found._asdict()))
    for item, adjusted in zip(out, holm([item['p'] for item in out])):
        item['adjusted_p'] = adjusted
    return out


def _compare(first: Dict[int, dict], second: Dict[int, dict]) -> dict:
    """Estimates of all scores, images, wins."""
    differences = paired(first, second)
    out: Dict[str, Any] = {
        key: estimate(list(paired(first, second, key).values()))._asdict() for key in SCORES
    }
    out['seeds'] = {str(seed): value for seed, value in differences.items()}
    out['better'] = sum(value > 0 for value in differences.values())
    out['worse'] = sum(value < 0 for value in differences.values())
    out['images'] = None
    if differences:
        before, after = (
            [unpack_areas(runs[s]['areas']) for s in differences] for runs in (first, second)
        )
        out['images'] = bootstrap_images(before, after)
    return out


def analyse(folder: Path, resolution: float = 2.0) -> dict:
    """Everything that the report says, as it is written to study.json.

    Args:
        folder (Path): plan.json and results/.
        resolution (float): Points of mIoU that the study should tell apart.

    Raises:
        ValueError: See :func:`read_study`; or no run of the baseline has a score.
    """
    plan, runs = read_study(folder)
    baseline = plan['baseline']
    base = _scored(runs[baseline])
    if not base:
        raise ValueError(f'no run of the baseline {baseline!r} has a score yet')
    level = [run['mIoU'] for run in base.values()]
    failed = {arm: failures(list(found.values()), level) for arm, found in runs.items()}
    example = next(iter(base.values()))
    everything = [r for found in runs.values() for r in found.values() if r['state'] != 'failed']
    out = dict(
        format=1,
        name=Path(folder).resolve().name,
        baseline=baseline,
        commands=plan.get('commands', []),
        seeds=sorted({seed for found in runs.values() for seed in found}),
        iterations=example['iterations'],
        precise_bn=plan['precise_bn'],
        resolution=resolution,
        images=example['areas']['images'],
        images_per_unit=example['areas']['images_per_unit'],
        classes=example['classes'],
        devices=sorted({f'{r["device"]}, threads of a job: {r["threads"]}' for r in everything}),
        versions=[
            dict(pairs)
            for pairs in sorted({tuple(sorted(r['versions'].items())) for r in everything})
        ],
        commits=sorted({r['commit'] for r in everything if r['commit']}),
        total_seconds=sum(r['seconds'] for r in everything),
        arms=[],
    )
    for name, arm in plan['arms'].items():
        found = runs[name]
        scored = _scored(found)
        item = dict(
            name=name,
            control_of=arm.get('control_of'),
            changes=arm['changes'],
            runs=len(found),
            failures={str(seed): words for seed, words in failed[name].items()},
            **{key: estimate([r[key] for r in scored.values()])._asdict() for key in SCORES},
            scores={str(s): {k: r[k] for k in SCORES} for s, r in scored.items()},
            parameters=next((r['parameters'] for r in scored.values()), None),
            curve=_curve(scored),
        )
        if plan['precise_bn']:
            before = estimate([r['as_trained']['mIoU'] for r in scored.values()])
            item['as_trained'] = before._asdict()
        if name != baseline and scored:
            item['difference'] = _compare(base, scored)
            kept = {s: r for s, r in scored.items() if s not in failed[name]}
            base_kept = {s: r for s, r in base.items() if s not in failed[baseline]}
            if len(kept) < len(scored) or len(base_kept) < len(base):
                sound = estimate(list(paired(base_kept, kept).values()))
                item['difference_without_failures'] = sound._asdict()
            item['classes'] = _classes(base, scored, out['classes'])
            item['missing'] = sum(
                (s in scored) != (s in base) for s in found if s in runs[baseline]
            )
            item['relative'] = dict(
                parameters=item['parameters'] / example['parameters'],
                time=_ratio(base, scored, _time_keys(example)),
                memory=_ratio(base, scored, ('peak_gpu_mib', 'peak_mib')),
            )
        out['arms'].append(item)
    compared = {a['name']: a for a in out['arms'] if 'difference' in a}
    arms = [arm for arm in compared.values() if arm['control_of'] is None]
    asked = [(arm['difference'], baseline, arm['missing']) for arm in arms]
    for arm, found in zip(arms, _judge(asked, resolution)):
        arm['verdict'] = found
    # whether a gain is more than that of the modules; of controls themselves nothing is claimed
    asked = []
    for control in compared.values():
        if control['control_of'] is None:
            continue
        control['difference']['adjusted_p'] = None
        arm = compared.get(control['control_of'])
        if arm is not None:
            against = _compare(_scored(runs[control['name']]), _scored(runs[arm['name']]))
            arm.setdefault('controls', {})[control['name']] = against
            asked.append((against, f'its control {control["name"]}', 0))
    for (against, *_), found in zip(asked, _judge(asked, resolution)):
        against['verdict'] = found
    return rounded(out)


def _time_keys(example: dict) -> tuple:
    # a GPU works while the CPU waits; on a CPU, wall time is that of whatever else runs there
    if example['peak_gpu_mib'] is not None:
        return ('iteration_seconds',)
    return ('iteration_cpu_seconds', 'iteration_seconds')


def _curve(runs: Dict[int, dict]) -> List[list]:
    """[iteration, mean mIoU, standard deviation, runs] at each validation."""
    points: Dict[int, List[float]] = {}
    for run in runs.values():
        for iteration, miou, *_ in run['validations']:
            if miou is not None:
                points.setdefault(iteration, []).append(miou)
    out = []
    for iteration, values in sorted(points.items()):
        found = estimate(values)
        out.append([iteration, found.mean, found.std, found.count])
    return out


def _judge(asked: Sequence[Tuple[dict, str, int]], resolution: float) -> List[dict]:
    """Adjusts the p values of differences over all of them, and says what each shows.

    Args:
        asked (Sequence[tuple]): Of each what :func:`_compare` gives, the name of what it is a
            difference to, and the number of runs without a score.
        resolution (float): See :func:`analyse`.
    """
    adjusted = holm([difference['mIoU']['p'] for difference, *_ in asked])
    comparisons = sum(p is not None for p in adjusted)
    out = []
    for (difference, other, missing), p in zip(asked, adjusted):
        difference['adjusted_p'] = p
        found = Estimate(**difference['mIoU'])
        images = difference['images']
        said = verdict(found, p, images, other, comparisons, resolution, missing)
        out.append(said._asdict())
    return out


def _number(value: Optional[float], form: str = '.2f', none: str = '–') -> str:
    return none if value is None else format(value, form)


def _interval(found: Optional[dict]) -> str:
    if found is None or found['mean'] is None:
        return '–'
    if found['low'] is None:
        return f'{found["mean"]:+.2f}'
    return f'{found["mean"]:+.2f} [{found["low"]:.2f}, {found["high"]:.2f}]'


def _spread(found: dict) -> str:
    if found['mean'] is None:
        return '–'
    return f'{found["mean"]:.2f}' + ('' if found['std'] is None else f' ± {found["std"]:.2f}')


HEADER = (
    'arm', 'seeds', 'mIoU', 'mAcc', 'aAcc', 'difference, over seeds', 'over images',
    'better / worse', 'adjusted p', 'failed', 'parameters', 'time', 'memory',
)  # fmt: skip


def rows(study: dict) -> List[List[str]]:
    """The table: an arm a row, under :data:`HEADER`."""
    out = []
    for arm in study['arms']:
        difference, relative = arm.get('difference'), arm.get('relative') or {}
        images = difference and difference['images']
        cells = [
            arm['name'],
            str(arm['mIoU']['count']),
            *(_spread(arm[key]) for key in SCORES),
            _interval(difference and difference['mIoU']),
            f'[{images[0]:.2f}, {images[1]:.2f}]' if images else '–',
            f'{difference["better"]} / {difference["worse"]}' if difference else '–',
            _number(difference and difference['adjusted_p'], '.3f'),
            f'{len(arm["failures"])} of {arm["runs"]}' if arm['failures'] else '0',
        ]
        if arm['name'] == study['baseline']:
            cells += [_number(arm['parameters'], ',d'), 'x 1', 'x 1']
        else:
            cells += [f'x {_number(relative.get(k))}' for k in ('parameters', 'time', 'memory')]
        out.append(cells)
    return out


def conclusions(study: dict) -> List[str]:
    """A sentence for each arm, and for what failed."""
    out = []
    for arm in study['arms']:
        words = []
        if 'verdict' in arm:
            words.append(arm['verdict']['words'])
        if arm['failures']:
            listed = '; '.join(f'seed {s} {how}' for s, how in arm['failures'].items())
            words.append(f'{len(arm["failures"])} of {arm["runs"]} runs failed ({listed})')
            sound = arm.get('difference_without_failures')
            if sound and sound['mean'] is not None:
                words.append(f'without failed runs {_interval(sound)} over {sound["count"]} seeds')
        for name, against in arm.get('controls', {}).items():
            said = against['verdict']['words']
            words.append(said if name in said else f'against its control {name}: {said}')
        if words:
            out.append(f'{arm["name"]}: ' + '. '.join(w[0].upper() + w[1:] for w in words) + '.')
    if study['precise_bn']:
        spreads = [
            f'{arm["name"]} {_spread(arm["mIoU"])} (as trained {_spread(arm["as_trained"])})'
            for arm in study['arms']
            if arm['mIoU']['mean'] is not None
        ]
        out.append(
            f'Batch norm statistics from {study["precise_bn"]} training batches: '
            + ', '.join(spreads)
            + '.'
        )
    return out


def class_rows(study: dict, most: int = 25) -> tuple:
    """(header, rows) of the classes' differences; '*' where the adjusted p is below 0.05."""
    arms = [arm for arm in study['arms'] if arm.get('classes')]
    header = ['class', *(arm['name'] for arm in arms)]
    names = study['classes']
    if len(names) > most:  # those that some arm changes most
        size = [
            max((abs(arm['classes'][i]['mean'] or 0) for arm in arms), default=0)
            for i in range(len(names))
        ]
        chosen = sorted(sorted(range(len(names)), key=lambda i: -size[i])[:most])
    else:
        chosen = list(range(len(names)))
    out = []
    for i in chosen:
        cells = [arm['classes'][i] for arm in arms]
        marks = ['*' * (c['adjusted_p'] is not None and c['adjusted_p'] < 0.05) for c in cells]
        out.append([names[i], *(_interval(c) + mark for c, mark in zip(cells, marks))])
    return header, out


def notes(study: dict) -> List[str]:
    """How to read the table, and what it was measured with."""
    per = study['images_per_unit']
    drawn = f'{study["images"]} validation images' + (f' in runs of {per}' if per > 1 else '')
    out = [
        'Mean ± standard deviation over seeds. Differences are to '
        f'{study["baseline"]}, seed by seed, with 95 % t intervals; over images: 95 % bootstrap '
        f'interval of the same difference, {drawn} drawn anew'
        + (' (too few here).' if study['images'] // per < 10 else '.'),
        'Adjusted p: of the t test, after Holm over all arms. A claim (better, worse) asks for at '
        'least 3 seeds, an adjusted p below 0.05 and an interval over images without 0, so in '
        'a study of equal arms any claim at all is false at most once in 20 studies.',
        'Failed: an error, a loss that is not finite, or collapsed, a final mIoU below half of the '
        "baseline's median. What has a score is in all figures.",
        f'{study["iterations"]} iterations. Time: of a training iteration, '
        'relative to the baseline, median over seeds; memory: peak, likewise.',
        'Measured on ' + '; '.join(study['devices']) + f'; {describe(study["total_seconds"])} of '
        'jobs in all.',
    ]
    for versions in study['versions']:
        out.append(', '.join(f'{key} {value}' for key, value in versions.items()) + '.')
    if study['commits']:
        out.append('Commits (+: with changes): ' + ', '.join(study['commits']) + '.')
    return out


def has_curves(study: dict) -> bool:
    """Whether there is a learning curve: two validations at least."""
    return any(len(arm['curve']) > 1 for arm in study['arms'])


def as_text(study: dict) -> str:
    """For a terminal."""
    return '\n'.join([text_table(HEADER, rows(study)), *conclusions(study)])


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ['---'] * len(header), *body]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def as_markdown(study: dict) -> str:
    """study.md."""
    header, body = class_rows(study)
    parts = [
        f'# Study: {study["name"]}',
        markdown_table(HEADER, rows(study)),
        '\n'.join(f'- {sentence}' for sentence in conclusions(study)),
        '![Differences to the baseline](study.png)',
        '## How to read it',
        '\n'.join(f'- {note}' for note in notes(study)),
    ]
    if body:
        parts += [
            '## Classes',
            'Difference of the IoU with its 95 % t interval; * where p, after Holm over the '
            'classes, is below 0.05.',
            markdown_table(header, body),
        ]
    parts.append('## Learning')
    if has_curves(study):
        parts.append('![Learning curves](curves.png)')
    else:
        parts.append('Validated once, at the end, so there is no learning curve.')
    parts += ['## Arms', markdown_table(('arm', 'changes'), _changes(study)), '## Commands']
    parts += [f'```shell\n{command}\n```' for command in study['commands']]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _changes(study: dict) -> List[List[str]]:
    out = []
    for arm in study['arms']:
        listed = ', '.join(f'`{key}={value}`' for key, value in arm['changes'].items())
        out.append([arm['name'], listed.replace('|', '\\|') or 'the config as it is'])
    return out


def as_html(study: dict, pictures: Sequence[Path]) -> str:
    """One page with everything in it."""

    def table(header: Sequence, body: Sequence[Sequence]) -> str:
        head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
        lines = ''.join(
            '<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in line) + '</tr>'
            for line in body
        )
        return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'

    def items(sentences: Sequence[str]) -> str:
        return '<ul>' + ''.join(f'<li>{html.escape(s)}</li>' for s in sentences) + '</ul>'

    images = ''.join(
        f'<img alt="{path.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in pictures
    )
    title = html.escape(f'Study: {study["name"]}')
    commands = ''.join(f'<pre>{html.escape(command)}</pre>' for command in study['commands'])
    header, body = class_rows(study, most=10_000)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
<h2>What can be said</h2>{items(conclusions(study))}
{table(HEADER, rows(study))}
{images}
<h2>How to read it</h2>{items(notes(study))}
<h2>Classes</h2><p>Difference of the IoU with its 95 % t interval; * where p, after Holm over the
classes, is below 0.05.</p>{table(header, body)}
<h2>Arms</h2>{table(('arm', 'changes'), _changes(study))}
<h2>Commands</h2>{commands}
</body></html>
"""


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff;max-width:75em}
h1{font-size:1.4em}h2{font-size:1.15em;margin:1.6em 0 .4em}
pre{background:#f4f4f4;padding:.6em;overflow:auto}
table{border-collapse:collapse}.wide{overflow:auto}
th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
img{display:block;max-width:100%;margin:1em 0}
"""


_BLOCK = re.compile(
    r'(<!-- study: ([^\s,]+)(?:, brief: ([^>]+?))? -->\n).*?(<!-- end of study -->)', re.DOTALL
)
#: What a brief table keeps of HEADER.
BRIEF = ('arm', 'seeds', 'mIoU', 'difference, over seeds', 'over images', 'better / worse')


def insert_tables(text: str, studies: Dict[str, dict]) -> str:
    """Renews the tables of studies in a page of Markdown.

    A table stands between the lines `<!-- study: NAME -->` and `<!-- end of study -->`; those of
    studies that aren't given are left as they are. `<!-- study: NAME, brief: ARM ARM -->` begins
    one of these arms only, in this order, with the columns of `BRIEF`.

    Args:
        text (str): The page.
        studies (dict): {name: what its study.json holds}.

    Raises:
        ValueError: A brief table names an arm that the study doesn't have.
    """

    def renew(found: re.Match) -> str:
        first, name, arms, last = found.groups()
        study = studies.get(name)
        if study is None:
            return found.group()
        header: Sequence[str] = HEADER
        body = rows(study)
        if arms:
            of_arm = {line[0]: line for line in body}
            missing = [arm for arm in arms.split() if arm not in of_arm]
            if missing:
                raise ValueError(f'{first.strip()}: the study {name} has no arm {missing[0]!r}')
            kept = [HEADER.index(column) for column in BRIEF]
            header = BRIEF
            body = [[of_arm[arm][i] for i in kept] for arm in arms.split()]
        return f'{first}{markdown_table(header, body)}\n{last}'

    return _BLOCK.sub(renew, text)


def write_report(folder: Path, resolution: float = 2.0) -> dict:
    """Writes study.json, study.md, study.html and the pictures into the study's folder.

    Returns:
        dict: What study.json holds.
    """
    from ..visualization.study_figures import draw_classes, draw_curves, draw_differences
    from ..visualization.style import save_figure

    folder = Path(folder)
    study = analyse(folder, resolution)
    write_json(folder / 'study.json', study)
    pictures = [save_figure(draw_differences(study), folder / 'study.png')]
    if has_curves(study):
        pictures.append(save_figure(draw_curves(study), folder / 'curves.png'))
    if any(arm.get('classes') for arm in study['arms']):
        pictures.append(save_figure(draw_classes(study), folder / 'classes.png'))
    (folder / 'study.md').write_text(as_markdown(study), encoding='utf-8')
    (folder / 'study.html').write_text(as_html(study, pictures), encoding='utf-8')
    return study
