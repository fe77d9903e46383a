"""The report, from result files made up so that every figure is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmseg_cmdl.study import plan, report
from mmseg_cmdl.study.recorder import pack_areas, scores
from tests.paths import ROOT

CLASSES = ('sky', 'road')
#: inside of 100 pixels each image; two images, both classes: the rest goes to the other class
FCN = {0: 60, 1: 62, 2: 64}
MDRL = {0: 66, 1: 70, 2: 70}
CAR = {0: 61, 1: 20, 2: 63}


def write_run(folder, arm, seed, inside, images=2, **changes):
    truth = np.full((images, 2), 100)
    hits = np.full((images, 2), inside)
    areas = np.stack([hits, hits + (truth - hits)[:, ::-1], truth], axis=1)
    found = scores(areas.sum(0))
    run = dict(
        format=1,
        arm=arm,
        seed=seed,
        state='finished',
        config=f'{arm}-config',
        iterations=20,
        **{key: float(found[key]) for key in report.SCORES},
        IoU=found['IoU'].tolist(),
        Acc=found['Acc'].tolist(),
        classes=list(CLASSES),
        first_not_finite=None,
        validations=[[10, inside / 2, 0, 0], [20, float(found['mIoU']), 0, 0]],
        parameters=1200 if arm == 'mdrl' else 1000,
        seconds=60.0,
        iteration_cpu_seconds=0.3 if arm == 'mdrl' else 0.2,
        iteration_seconds=9.0,
        peak_mib=550.0 if arm == 'mdrl' else 500.0,
        peak_gpu_mib=None,
        device='a CPU',
        threads=1,
        versions=dict(torch='2.13'),
        commit='0123456789',
        areas=pack_areas(areas),
    )
    plan.write_json(folder / 'results' / f'{arm}_seed{seed}.json', {**run, **changes})


def miou(inside):
    """Of both classes: inside / (200 - inside)."""
    return 100 * inside / (200 - inside)


@pytest.fixture
def folder(tmp_path):
    arms = {
        name: dict(fingerprint=f'{name}-config', changes=changes)
        for name, changes in (
            ('fcn', {}),
            ('mdrl', {'model.decode_head.type': 'MDRLHead'}),
            ('car', {'model.type': 'CAREncoderDecoder'}),
        )
    }
    plan.write_json(
        tmp_path / 'plan.json',
        dict(format=1, baseline='fcn', precise_bn=0, arms=arms, commands=['python study.py x.py']),
    )
    for arm, values in (('fcn', FCN), ('mdrl', MDRL), ('car', CAR)):
        for seed, inside in values.items():
            write_run(tmp_path, arm, seed, inside)
    return tmp_path


def arm_of(study, name):
    return next(arm for arm in study['arms'] if arm['name'] == name)


def test_figures_by_hand(folder):
    study = report.analyse(folder)
    fcn, mdrl, car = (arm_of(study, name) for name in ('fcn', 'mdrl', 'car'))
    values = [miou(v) for v in FCN.values()]
    assert fcn['mIoU']['mean'] == pytest.approx(np.mean(values), abs=1e-4)
    assert fcn['mIoU']['std'] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert fcn['aAcc']['mean'] == pytest.approx(62.0)
    assert 'difference' not in fcn

    differences = [miou(MDRL[s]) - miou(FCN[s]) for s in FCN]
    found = mdrl['difference']
    assert list(found['seeds'].values()) == pytest.approx(differences, abs=1e-4)
    margin = 4.302653 * np.std(differences, ddof=1) / 3**0.5  # t(0.975; 2)
    assert found['mIoU']['low'] == pytest.approx(np.mean(differences) - margin, abs=1e-3)
    assert found['mIoU']['high'] == pytest.approx(np.mean(differences) + margin, abs=1e-3)
    assert found['mAcc']['mean'] == pytest.approx(20 / 3, abs=1e-3)
    assert (found['better'], found['worse'], found['images']) == (3, 0, None)
    p = [arm['difference']['mIoU']['p'] for arm in (mdrl, car)]
    assert found['adjusted_p'] == pytest.approx(2 * p[0], abs=2e-4)
    assert mdrl['verdict']['kind'] == 'better'
    assert mdrl['relative'] == dict(parameters=1.2, time=1.5, memory=1.1)
    assert mdrl['curve'] == [
        [10, pytest.approx(103 / 3, abs=1e-3), pytest.approx(1.1547, abs=1e-4), 3],
        [20, mdrl['mIoU']['mean'], mdrl['mIoU']['std'], 3],
    ]
    sky = mdrl['classes'][0]
    assert (sky['name'], sky['mean']) == ('sky', found['mIoU']['mean'])


def test_a_collapsed_run_is_shown_and_in_all_figures(folder):
    study = report.analyse(folder)
    car = arm_of(study, 'car')
    assert car['failures'] == {'1': 'collapsed: mIoU 11.1'}
    assert car['mIoU']['mean'] == pytest.approx(np.mean([miou(v) for v in CAR.values()]), abs=1e-4)
    sound = [miou(CAR[s]) - miou(FCN[s]) for s in (0, 2)]
    assert car['difference_without_failures']['mean'] == pytest.approx(np.mean(sound), abs=1e-4)
    assert car['difference_without_failures']['count'] == 2
    words = '\n'.join(report.conclusions(study))
    assert '1 of 3 runs failed (seed 1 collapsed: mIoU 11.1). Without failed runs' in words
    assert '1 of 3' in report.rows(study)[2]


def test_a_run_without_a_score_forbids_a_claim(folder):
    assert arm_of(report.analyse(folder), 'mdrl')['verdict']['kind'] == 'better'
    write_run(folder, 'fcn', 3, 64)
    plan.write_json(
        folder / 'results' / 'mdrl_seed3.json',
        dict(
            format=1,
            arm='mdrl',
            seed=3,
            state='failed',
            config='mdrl-config',
            how='exit code 1',
            error='no memory',
        ),
    )
    study = report.analyse(folder)
    mdrl = arm_of(study, 'mdrl')
    assert mdrl['failures'] == {'3': 'failed: no memory'}
    assert (mdrl['runs'], mdrl['mIoU']['count'], mdrl['missing']) == (4, 3, 1)
    assert mdrl['verdict']['kind'] == 'hint'
    assert '1 runs without a score are not in it' in mdrl['verdict']['words']


def test_a_seed_that_only_one_arm_has_yet_is_no_failure(folder):
    write_run(folder, 'fcn', 3, 64)
    mdrl = arm_of(report.analyse(folder), 'mdrl')
    assert (mdrl['missing'], mdrl['difference']['mIoU']['count']) == (0, 3)


def test_images_are_drawn_where_there_are_enough(folder):
    for arm, values in (('fcn', FCN), ('mdrl', MDRL), ('car', CAR)):
        for seed, inside in values.items():
            write_run(folder, arm, seed, inside, images=10)
    mdrl = arm_of(report.analyse(folder), 'mdrl')
    mean = mdrl['difference']['mIoU']['mean']
    assert mdrl['difference']['images'] == pytest.approx([mean, mean])  # all images are alike


def test_precise_statistics_are_compared_with_those_as_trained(folder):
    found = json.loads((folder / 'plan.json').read_text())
    plan.write_json(folder / 'plan.json', {**found, 'precise_bn': 10})
    for arm, values in (('fcn', FCN), ('mdrl', MDRL), ('car', CAR)):
        for seed, inside in values.items():
            write_run(folder, arm, seed, inside, as_trained=dict(mIoU=40.0 + seed))
    study = report.analyse(folder)
    assert arm_of(study, 'fcn')['as_trained']['std'] == 1.0
    assert (
        'from 10 training batches: fcn 44.95 ± 2.10 (as trained 41.00 ± 1.00)'
        in (report.conclusions(study)[-1])
    )


def test_controls_are_compared_with_their_arm(folder):
    found = json.loads((folder / 'plan.json').read_text())
    found['arms']['mdrl~pixels'] = dict(fingerprint='c', changes={}, control_of='mdrl')
    plan.write_json(folder / 'plan.json', found)
    for seed, inside in {0: 66, 1: 69, 2: 71}.items():
        write_run(folder, 'mdrl~pixels', seed, inside, config='c')
    study = report.analyse(folder)
    against = arm_of(study, 'mdrl')['controls']['mdrl~pixels']
    expected = np.mean([miou(a) - miou(b) for a, b in ((66, 66), (70, 69), (70, 71))])
    assert against['mIoU']['mean'] == pytest.approx(expected, abs=1e-4)
    assert against['verdict']['kind'] == 'open'
    words = f'Against its control mdrl~pixels: {against["verdict"]["words"]}'
    assert any(line.startswith('mdrl: ') and words in line for line in report.conclusions(study))
    # a control adds no comparison to the baseline
    p = [arm_of(study, name)['difference'] for name in ('mdrl', 'car')]
    assert p[0]['adjusted_p'] == pytest.approx(2 * p[0]['mIoU']['p'], abs=2e-4)
    assert 'verdict' not in arm_of(study, 'mdrl~pixels')


def test_files(folder):
    written = report.write_report(folder)
    assert json.loads((folder / 'study.json').read_text()) == written
    page = (folder / 'study.html').read_text()
    assert page.count('data:image/png;base64,') == 3
    assert 'http' not in page
    text = (folder / 'study.md').read_text()
    assert text == report.as_markdown(written)
    row = next(line for line in text.splitlines() if line.startswith('| mdrl '))
    found = arm_of(written, 'mdrl')['difference']['mIoU']
    assert f'| +{found["mean"]:.2f} [{found["low"]:.2f}, {found["high"]:.2f}] |' in row
    assert '| 3 / 0 |' in row
    assert '| x 1.20 | x 1.50 | x 1.10 |' in row
    before = (folder / 'study.png').read_bytes()
    assert report.write_report(folder) == written
    assert (folder / 'study.png').read_bytes() == before


def test_tables_in_pages_are_renewed(folder):
    study = report.analyse(folder)
    page = 'a\n<!-- study: earth -->\nold\n<!-- end of study -->\nb\n'
    table = report.markdown_table(report.HEADER, report.rows(study))
    expected = f'a\n<!-- study: earth -->\n{table}\n<!-- end of study -->\nb\n'
    assert report.insert_tables(page, {'earth': study}) == expected
    assert report.insert_tables(page, {'camvid': study}) == page

    brief = page.replace('earth', 'earth, brief: mdrl fcn')
    lines = report.insert_tables(brief, {'earth': study}).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:6]]
    assert cells[0] == [
        'arm', 'seeds', 'mIoU', 'difference, over seeds', 'over images', 'better / worse',
    ]  # fmt: skip
    full = {row[0]: row for row in report.rows(study)}
    assert cells[2] == [full['mdrl'][i] for i in (0, 1, 2, 5, 6, 7)]
    assert cells[3] == [full['fcn'][i] for i in (0, 1, 2, 5, 6, 7)]
    with pytest.raises(ValueError, match="the study earth has no arm 'psp'"):
        report.insert_tables(page.replace('earth', 'earth, brief: psp'), {'earth': study})


def test_results_that_are_none(folder, tmp_path):
    with pytest.raises(ValueError, match=r'has no plan\.json'):
        report.analyse(tmp_path / 'elsewhere')
    write_run(folder, 'mdrl', 7, 60, config='another')
    with pytest.raises(ValueError, match=r'mdrl_seed7\.json is of another config'):
        report.analyse(folder)
    (folder / 'results' / 'mdrl_seed7.json').write_text('{"format": 1')
    with pytest.raises(ValueError, match=r'mdrl_seed7\.json is no result of a study'):
        report.analyse(folder)


STUDIES = sorted(path.parent for path in ROOT.glob('docs/studies/*/plan.json'))


@pytest.mark.parametrize('study', STUDIES, ids=lambda path: path.name)
def test_committed_studies_follow_from_their_results(study):
    found = report.analyse(study, json.loads((study / 'study.json').read_text())['resolution'])
    written = json.loads((study / 'study.json').read_text())
    assert found['arms'] == written['arms']
    assert (study / 'study.md').read_text(encoding='utf-8') == report.as_markdown(written)


PAGES = [
    *ROOT.glob('*.md'),
    *ROOT.glob('docs/**/*.md'),
    *ROOT.glob('configs/**/*.md'),
]


def test_tables_in_pages_are_those_of_the_studies():
    studies = {
        path.name: json.loads((path / 'study.json').read_text(encoding='utf-8')) for path in STUDIES
    }
    for page in PAGES:
        text = Path(page).read_text(encoding='utf-8')
        named = [found.group(2) for found in report._BLOCK.finditer(text)]
        assert set(named) <= set(studies), page
        assert report.insert_tables(text, studies) == text, page
