"""Frame-causal TTT: one frame is one mini-batch of N tokens, and every token sees the weights after its own frame.

W_t = W_{t-1} - (1/N) sum_{j in frame t} eta_j grad(W_{t-1}; j),   z_j = f(q_j; W_t)

No order inside a frame, so no triangle and no N x N matrix. Nothing here reads a value, so it exports with any masks.
"""

import torch
from torch import Tensor

from tttstream_kernels.call import Call
from tttstream_kernels.inner import flatten
from tttstream_kernels.norm import EPS, error_share, error_terms, half_square, normalise, reconstruction_gradient
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Weights


def frame_causal(
    call: Call, state: InnerState, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """Whole frames: (outputs [B, T, H, D], state, loss)."""
    if lengths is not None:
        inside = (torch.arange(call.q.shape[1], device=call.q.device) < lengths[:, None])[:, :, None, None]
        q, k, v, eta = (torch.where(inside, x, 0.0) for x in (call.q, call.k, call.v, call.eta))
        call = call._replace(q=q, k=k, v=v, eta=eta)
    outputs, before, after = [], [], []
    for begin in range(0, call.q.shape[1], call.tokens):
        if reset is not None:
            cut = reset[:, begin] if lengths is None else reset[:, begin] & (lengths > begin)
            state = state.fresh().where(cut, state)
        y, new, losses = one_frame(call.at(begin, begin + call.tokens), state, return_loss)
        state = new if lengths is None else new.where(lengths > begin, state)
        outputs.append(y)
        if losses is not None:
            before.append(losses.before)
            after.append(losses.after)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    if lengths is not None:
        y = torch.where(inside, y, 0.0)
    if not return_loss:
        return y, state, None
    loss = Loss(torch.cat(before, dim=1), torch.cat(after, dim=1))
    if lengths is not None:
        loss = Loss(*(torch.where(inside[..., 0], part, 0.0) for part in loss))
    return y, state, loss


def one_frame(call: Call, state: InnerState, return_loss: bool) -> tuple[Tensor, InnerState, Loss | None]:
    """Learn one frame, then read it: (outputs [B, N, H, D], state, loss)."""
    inner, start = call.inner, call.start
    rows, tokens, heads, width = call.q.shape
    cells = rows * heads

    def split(flat: Tensor) -> Weights:
        return inner.split(flat, width)

    q, k, v, rate = (x.transpose(1, 2).reshape(cells, tokens, -1) for x in (call.q, call.k, call.v, call.eta))
    gamma, beta = (x.expand(rows, -1, -1).reshape(cells, 1, width) for x in (call.gamma, call.beta))
    rule = call.update.rule(split(start.expand_as(state.delta)))
    weights = split(start + state.delta)
    rate = rate / tokens

    z, saved = inner.forward(k, weights)
    if inner.residual:
        gradient = reconstruction_gradient(z, *error_terms(v - k, gamma, beta, rate))
        if call.update.has_margin:
            share = error_share(normalise(z, gamma, beta) - (v - k), rule.margin)
            gradient = share * gradient
        step = inner.gradients(gradient, weights, saved)
    else:
        step = inner.gradients(-v, weights, saved, rate)
    if call.update.normalised:
        error = normalise(z, gamma, beta) - (v - k)
        error = share * error if call.update.has_margin else error
        total = (rate * half_square(error)[..., None]).sum(1, keepdim=True)
        square = torch.stack([s.square().sum((1, 2)) for s in step]).sum(0)[:, None, None]
        scale = 1.0 / (1.0 + square / (2.0 * total + EPS / tokens))  # tau = 1 / N is in the rate
        step = tuple(scale * s for s in step)
    now, *carried = rule.stepped(weights, step, *call.update.carried(state.momentum, split))
    y = inner.forward(q, now)[0]
    if inner.residual:
        y = q + normalise(y, gamma, beta)
    loss = None
    if return_loss:
        after = inner.forward(k, now)[0]
        if inner.residual:
            losses = [half_square(normalise(part, gamma, beta) - (v - k)) for part in (z, after)]
        else:
            losses = [-(part * v).sum(-1) for part in (z, after)]
        loss = Loss(*(part.view(rows, heads, tokens).transpose(1, 2) for part in losses))
    new = InnerState(
        delta=flatten(rule.settle(now)[0]).view_as(state.delta) - start,
        grad_sum=state.grad_sum,
        momentum=call.update.joined(carried, state.momentum),
        phase=state.phase,
    )
    return y.view(rows, heads, tokens, width).transpose(1, 2), new, loss
