"""MDRL straight from its equations: loops, float64, autograd, nothing shared with the package.

Equation numbers are those of the MDRL paper. The ``released`` forms follow the description beside
the recorded numbers. Symbols: B images, K classes, N distributions, P pixels, Z channels.
"""

import math

import torch


def sinkhorn(scores, epsilon=0.05, iterations=3):
    """Eq. 7 for the pixels of one class: [M, N] -> [M, N], pixels scaled last, rows sum to 1."""
    m, n = scores.shape
    plan = (scores / epsilon).exp()
    for _ in range(iterations):
        plan = torch.stack([plan[:, j] / plan[:, j].sum() * (m / n) for j in range(n)], 1)
        plan = torch.stack([plan[i] / plan[i].sum() for i in range(m)])
    return plan


def sinkhorn_log(scores, epsilon=0.05, iterations=3):
    """The same in log space, for scores whose exponent leaves float64."""
    log_plan = scores.double() / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    return log_plan.exp()


def assign(scores, classes, num_classes, epsilon=0.05, iterations=3, form=sinkhorn):
    """Every class on its own: [P, N], [P] -> [P, N]; rows of pixels of no class are zero."""
    out = torch.zeros_like(scores)
    for c in range(num_classes):
        rows = (classes == c).nonzero()[:, 0]
        if len(rows):
            out[rows] = form(scores[rows], epsilon, iterations).to(out.dtype)
    return out


def nearest_labels(labels, size):
    """[B, H, W] -> [B, h, w]: the index rounded down after scaling."""
    (_, height, width), (h, w) = labels.shape, size
    out = labels.new_empty(len(labels), h, w)
    for y in range(h):
        for x in range(w):
            out[:, y, x] = labels[:, y * height // h, x * width // w]
    return out


def resize(maps, size, align_corners=False):
    """Bilinear, pixel by pixel: [B, C, h, w] -> [B, C, H, W]."""

    def taps(i, full, cells):
        if align_corners:
            x = i * (cells - 1) / (full - 1) if full > 1 else 0.0
        else:
            x = max(0.0, (i + 0.5) * cells / full - 0.5)
        first = min(math.floor(x), cells - 1)
        return (first, 1 - (x - first)), (min(first + 1, cells - 1), x - first)

    pixels = []
    for y in range(size[0]):
        for x in range(size[1]):
            near = [
                (wy * wx, maps[:, :, i, j])
                for i, wy in taps(y, size[0], maps.shape[2])
                for j, wx in taps(x, size[1], maps.shape[3])
            ]
            # no share of a bad cell is no harm
            pixels.append(sum(weight * cell for weight, cell in near if weight > 0))
    return torch.stack(pixels, -1).unflatten(-1, tuple(size))


def _pixels(similarity, labels, ignore_index):
    """(similarity [K, N], class) of every labelled pixel at feature size."""
    small = nearest_labels(labels, similarity.shape[1:3])
    flat, classes = similarity.flatten(0, 2), small.flatten().tolist()
    return [(flat[p], c) for p, c in enumerate(classes) if c != ignore_index]


def local_paper(similarity, labels, ignore_index=255):
    """Eq. 12-14: distance = smallest minus cosine of each class, softmax of minus distance."""
    losses = []
    for sim, label in _pixels(similarity, labels, ignore_index):
        distance = torch.stack(
            [min(-sim[c, n] for n in range(sim.shape[1])) for c in range(sim.shape[0])]
        )
        p = (-distance).exp() / (-distance).exp().sum()
        losses.append(-p[label].log())
    return sum(losses) / len(losses) if losses else similarity.sum() * 0


def local_released(similarity, labels, weight=None, bias=None, ignore_index=255, eps=1e-5):
    """Nearest distribution, LayerNorm over classes, aligned bilinear resize, cross entropy."""
    scores = similarity.max(-1).values  # B, h, w, K
    centred = scores - scores.mean(-1, keepdim=True)
    scores = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        scores = scores * weight + bias
    scores = resize(scores.permute(0, 3, 1, 2), labels.shape[1:], align_corners=True)
    losses = [
        row.logsumexp(0) - row[label]
        for row, label in zip(scores.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten().tolist())
        if label != ignore_index
    ]
    return sum(losses) / len(losses) if losses else similarity.sum() * 0


def global_paper(similarity, labels, temperature=0.5, ignore_index=255):
    """Eq. 15: A over the N distributions of the true class, B over all others."""
    losses = []
    for sim, label in _pixels(similarity, labels, ignore_index):
        terms = (sim / temperature).exp()
        a = sum(terms[label, n] for n in range(sim.shape[1]))
        b = sum(terms[c, n] for c in range(sim.shape[0]) if c != label for n in range(sim.shape[1]))
        losses.append(-(a / (a + b)).log())
    return sum(losses) / len(losses) if losses else similarity.sum() * 0


def global_released(similarity, labels, ignore_index=255):
    """One cross entropy per positive; mean over pixels of a class, positives, present classes."""
    per_class = {}
    for sim, label in _pixels(similarity, labels, ignore_index):
        others = sum(sim[c].exp().sum() for c in range(sim.shape[0]) if c != label)
        ce = torch.stack(
            [(sim[label, n].exp() + others).log() - sim[label, n] for n in range(sim.shape[1])]
        )
        per_class.setdefault(label, []).append(ce)
    if not per_class:
        return similarity.sum() * 0
    return sum(torch.stack(rows).mean() for rows in per_class.values()) / len(per_class)


def naive(loss):
    """The form above of a consistency loss, with its options and layers but for `loss_weight`."""
    if loss.loss_name == 'loss_clcl':
        if loss.formulation == 'paper':
            return local_paper
        weights = (loss.norm.weight, loss.norm.bias) if loss.norm is not None else (None, None)
        return lambda s, y, ignore_index=255: local_released(s, y, *weights, ignore_index)
    if loss.formulation == 'paper':
        return lambda s, y, ignore_index=255: global_paper(s, y, loss.temperature, ignore_index)
    return global_released


def nearest_is_own(bank, embedding, label):
    """Eq. 12: does the nearest of all K*N distributions belong to the pixel's class?"""
    best, owner = -math.inf, -1
    for c in range(bank.shape[0]):
        for n in range(bank.shape[1]):
            cosine = float(embedding @ bank[c, n])
            if cosine > best:
                best, owner = cosine, c
    return owner == label


def pixels_of(c, vectors, labels, ignore_index=255):
    """Rows of [P, Z] that can move class c: labelled with it, and finite."""
    return [
        p
        for p in range(len(labels))
        if int(labels[p]) == c and c != ignore_index and bool(vectors[p].isfinite().all())
    ]


def update(
    bank,
    embeddings,
    labels,
    correct=None,
    momentum=0.999,
    epsilon=0.05,
    iterations=3,
    pixels='correct',
    ignore_index=255,
):
    """Eq. 6-8 with the plain largest entry: -> bank after [K, N, Z], soft [P, N], hard [P]."""
    bank = bank.double()
    num_classes, num, _ = bank.shape
    after = bank.clone()
    soft = torch.zeros(len(embeddings), num, dtype=torch.float64)
    hard = torch.full((len(embeddings),), -1)
    for c in range(num_classes):
        rows = pixels_of(c, embeddings, labels, ignore_index)
        if not rows:
            continue
        points = embeddings[rows].double()
        plan = sinkhorn_log(points @ bank[c].T, epsilon, iterations)
        soft[rows], hard[rows] = plan, plan.argmax(1)
        for n in range(num):
            chosen = []
            for p, i in zip(rows, range(len(rows))):
                right = (
                    bool(correct[p]) if correct is not None else nearest_is_own(bank, points[i], c)
                )
                if int(hard[p]) == n and (pixels == 'all' or right):
                    chosen.append(points[i])
            if chosen:
                b = sum(chosen)
                row = momentum * bank[c, n] + (1 - momentum) * b / b.norm()
                after[c, n] = row / row.norm()
    return after, soft, hard


def vote(weights, bank):
    """Eq. 9, group by group, stacked along channels: [B, K, h, w], [K, N, Z] -> [B, N*Z, h, w]."""
    groups = []
    for n in range(bank.shape[1]):
        voted = 0
        for c in range(bank.shape[0]):
            voted = voted + weights[:, c, None] * bank[c, n][None, :, None, None]
        groups.append(voted)
    return torch.cat(groups, 1)


def attend(query, key, value, scale=True):
    """Eq. 10, 11 without the transforms, pixel by pixel: maps [B, C, ..] -> [B, Cv, h, w]."""
    batch, channels = query.shape[:2]
    out = query.new_zeros(batch, value.shape[1], *query.shape[2:])
    for b in range(batch):
        keys, values = key[b].flatten(1), value[b].flatten(1)
        for y in range(query.shape[2]):
            for x in range(query.shape[3]):
                products = torch.stack(
                    [query[b, :, y, x] @ keys[:, j] for j in range(keys.shape[1])]
                )
                if scale:
                    products = products / math.sqrt(channels)
                relation = products.exp() / products.exp().sum()
                out[b, :, y, x] = sum(relation[j] * values[:, j] for j in range(keys.shape[1]))
    return out


def relate(block, query_feats, key_feats):
    """A relation block's own transforms around :func:`attend`."""
    out = attend(
        block.query_project(query_feats),
        block.key_project(key_feats),
        block.value_project(key_feats),
        block.matmul_norm,
    )
    return out if block.out_project is None else block.out_project(out)


def aggregate(head, pixels, coarse_logits, context=None, hard=False):
    """Eq. 2-4 with a head's own convs, the voting naive: -> what the final classifier sees.

    Of MCIBI the same (its eq. 2-4, 12-14), with one vector a class, which nothing has to fuse.
    """
    if hard:
        weights = torch.zeros_like(coarse_logits)
        weights.scatter_(1, coarse_logits.argmax(1, keepdim=True), 1)
    else:
        weights = coarse_logits.exp() / coarse_logits.exp().sum(1, keepdim=True)
    if hasattr(head.bank, 'distributions'):
        memory = head.fuse_memory(vote(weights, head.bank.distributions))
    else:
        memory = vote(weights, head.bank.features[:, None])
    related = relate(head.relation, pixels, memory)
    both = torch.cat([pixels, related], 1)
    if head.fusion == 'concat':
        fused = head.fuse_pixels(both)
    elif head.fusion == 'add':
        fused = pixels + related
    else:  # by a weight in (0, 1) for each pixel
        conv = head.fusion_weight
        logit = torch.einsum('oc,bchw->bohw', conv.weight[:, :, 0, 0], both) + conv.bias
        fused = pixels + related / (1 + (-logit).exp())
    if context is not None:
        within = relate(head.context_relation, pixels, context)
        fused = head.fuse_context(torch.cat([within, fused], 1))
    return fused


def unit(x):
    """Rows brought to length one."""
    return x / x.norm(dim=-1, keepdim=True)
