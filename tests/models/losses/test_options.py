"""Options that all losses have: name, weight, formulation; and what each refuses."""

import pytest
from mmseg.registry import MODELS

import mmseg_cmdl  # noqa: F401  registers them

# names, and defaults besides a weight of 1
LOSSES = dict(
    ClassLocalConsistencyLoss=('loss_clcl', dict(formulation='released')),
    ClassGlobalConsistencyLoss=('loss_cgcl', dict(formulation='released', temperature=0.5)),
    IntraClassCenterToPixelLoss=('loss_intra_c2p', dict(formulation='paper')),
    InterClassCenterToCenterLoss=('loss_inter_c2c', dict(formulation='paper', threshold=0.5)),
    InterClassCenterToPixelLoss=('loss_inter_c2p', dict(formulation='paper', threshold=0.25)),
    PixelPrototypeContrastLoss=('loss_ppc', dict(temperature=1)),
    PixelPrototypeDistanceLoss=('loss_ppd', {}),
    AffinityLoss=('loss_prior', dict(unary_weight=1, global_weight=1)),
)


@pytest.mark.parametrize('kind', LOSSES)
def test_registered_with_names_and_defaults(kind):
    name, defaults = LOSSES[kind]
    loss = MODELS.build(dict(type=kind))
    assert loss.loss_name == name
    found = {option: getattr(loss, option) for option in ('loss_weight', *defaults)}
    assert found == dict(loss_weight=1, **defaults)
    assert MODELS.build(dict(type=kind, loss_name='loss_mine')).loss_name == 'loss_mine'


@pytest.mark.parametrize(
    ('kind', 'option', 'value'),
    [
        *((kind, 'loss_name', 'prior') for kind in LOSSES),
        *((kind, 'loss_weight', float('nan')) for kind in LOSSES),
        *((kind, 'formulation', 'papers') for kind in LOSSES if 'formulation' in LOSSES[kind][1]),
        ('ClassGlobalConsistencyLoss', 'temperature', 0.0),
        ('ClassGlobalConsistencyLoss', 'temperature', -1.0),
        *(('PixelPrototypeContrastLoss', 'temperature', x) for x in (0.0, -1.0, float('nan'))),
        ('InterClassCenterToCenterLoss', 'threshold', -0.1),
        ('InterClassCenterToPixelLoss', 'threshold', 1.5),
        ('InterClassCenterToCenterLoss', 'classes', 'some'),
        ('InterClassCenterToPixelLoss', 'threshold_classes', 'some'),
    ],
)
def test_refusals_name_option_and_value(kind, option, value):
    with pytest.raises(ValueError, match=rf'{kind}\b.*{option}.*{value}'):
        MODELS.build({'type': kind, option: value})
