"""The committed table of models evaluated in mid-training."""

import json

import numpy as np

from tests.paths import ROOT, load_script


def test_the_table_of_mid_training_follows_from_its_results():
    folder = ROOT / 'docs' / 'studies' / 'mid-training'
    measure = load_script(folder / 'measure.py')
    results = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
    assert {len(runs) for runs in results.values()} == {6}
    assert measure.table(results) in (folder / 'index.md').read_text(encoding='utf-8')
    runs = results['MCIBI'].values()
    gains = [run['250']['memory'] - run['250']['trained'] for run in runs]
    assert f'{np.mean(gains):+.2f} [' in measure.table(results)
