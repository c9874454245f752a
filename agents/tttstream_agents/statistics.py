"""Running means and variances of observations and of returns, with the formulas of gymnasium's RunningMeanStd.

Letters: * any leading sizes, N numbers.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-8
MOST = 10.0  # deviations, at which a normalised observation is clipped


class Running(nn.Module):
    """The mean and variance of all rows so far, in float64 buffers, which are part of a policy's weights.

    prior: the weight, in rows, of an initial mean of 0 and variance of 1. gymnasium uses 1e-4. For values that are
    large and close together it dominates the variance for a long time, so it is 0 for observations.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, prior: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(prior, dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows [*, N] (Chan et al., 1979: means and variances of two sets give those of both)."""
        rows = rows.flatten(0, -2).to(self.mean)
        count = len(rows)
        if not count:
            return
        mean, var = rows.mean(0), rows.var(0, correction=0)
        total, delta = self.count + count, mean - self.mean
        square = self.var * self.count + var * count + delta.square() * self.count * count / total
        self.mean.add_(delta * count / total)
        self.var.copy_(square / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """x [*, N] -> (x - mean) / sqrt(var), clipped at 10 deviations, in the default type."""
        normal = (x.to(self.mean) - self.mean) / (self.var + EPSILON).sqrt()
        return normal.clamp(-MOST, MOST).to(torch.get_default_dtype())


class RewardScale(nn.Module):
    """Divides rewards by the standard deviation of the discounted return, as gymnasium's NormalizeReward does on
    environments that reset themselves on the SAME step. batch: B environments.
    """

    returned: Tensor

    def __init__(self, batch: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.running = Running(1, prior=1e-4)
        self.register_buffer("returned", torch.zeros(batch, dtype=torch.float64))

    def forward(self, reward: Tensor, valid: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        """The rewards [B] of the next step -> scaled ones. The statistics include this step where it is valid."""
        before = torch.where(terminated, 0.0, self.returned)
        returned = torch.where(valid, before * self.gamma + reward.to(before), self.returned)
        self.running.update(returned[valid, None])
        self.returned.copy_(torch.where(terminated | truncated, 0.0, returned))
        return (reward.to(before) / (self.running.var[0] + EPSILON).sqrt()).to(reward)
