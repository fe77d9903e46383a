"""The naive forms reproduce the recorded numbers, so comparing with them means something."""

import pytest
import torch

from tests.reference import golden, mdrl


@pytest.mark.parametrize('name', golden.names('sinkhorn_*'))
@pytest.mark.parametrize('form', [mdrl.sinkhorn, mdrl.sinkhorn_log])
def test_sinkhorn(name, form):
    data = golden.load(name)
    plan = form(data['scores'], data['epsilon'], data['iterations'])
    torch.testing.assert_close(plan, data['assignment'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', golden.names('mdrl_losses_*'))
def test_losses(name):
    data = golden.load(name)
    points, bank = data['embeddings'].requires_grad_(), data['bank'].requires_grad_()
    weight, bias = data['ln_weight'].requires_grad_(), data['ln_bias'].requires_grad_()
    batch, h, w = data['batch_height_width'].tolist()
    labels = data['labels']
    assert torch.equal(mdrl.nearest_labels(labels, (h, w)).flatten(), data['pixel_labels'])
    similarity = torch.stack(
        [torch.stack([points @ row for row in rows], -1) for rows in bank], 1
    ).view(batch, h, w, *bank.shape[:2])

    def check(value, key, grads):
        assert value.item() == pytest.approx(data[key], abs=1e-10)
        for leaf, grad_key in grads:
            (grad,) = torch.autograd.grad(value, leaf, retain_graph=True)
            torch.testing.assert_close(grad, data[grad_key], rtol=0, atol=1e-10)

    check(
        mdrl.local_paper(similarity, labels),
        'paper_clcl',
        [(points, 'paper_clcl_grad'), (bank, 'paper_clcl_grad_bank')],
    )
    check(
        mdrl.global_paper(similarity, labels, data['tau']),
        'paper_cgcl',
        [(points, 'paper_cgcl_grad'), (bank, 'paper_cgcl_grad_bank')],
    )
    check(mdrl.global_paper(similarity, labels, 1.0), 'paper_cgcl_tau1', [])
    check(
        mdrl.local_released(similarity, labels, weight, bias, eps=data['ln_eps']),
        'released_loss_ce',
        [
            (points, 'released_loss_ce_grad'),
            (weight, 'released_loss_ce_grad_ln_weight'),
            (bias, 'released_loss_ce_grad_ln_bias'),
        ],
    )
    check(
        mdrl.global_released(similarity, labels),
        'released_loss_ppc',
        [(points, 'released_loss_ppc_grad')],
    )


@pytest.mark.parametrize('name', golden.names('mdrl_update_*'))
def test_update(name):
    data = golden.load(name)
    steps = data['embeddings'].dim() == 3
    every = (lambda key: data[key]) if steps else (lambda key: data[key][None])
    bank = data['bank_before']
    for step in range(5 if steps else 1):
        bank, soft, hard = mdrl.update(
            bank,
            every('embeddings')[step],
            every('pixel_labels')[step],
            every('correct')[step],
            data['momentum'],
            data['epsilon'],
            data['iterations'],
        )
        torch.testing.assert_close(soft, every('soft_assignment')[step], rtol=0, atol=1e-10)
        assert torch.equal(hard, every('hard_assignment')[step])
        torch.testing.assert_close(bank, every('bank_after')[step], rtol=0, atol=1e-10)
