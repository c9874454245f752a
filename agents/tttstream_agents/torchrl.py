"""TorchRL: a memory as a TensorDict module, for collectors and losses.

    memory = TTTModule(4, in_key="observation", out_key="features")
    env = TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), memory.make_tensordict_primer()))
    policy = TensorDictSequential(memory, head)

Letters: S rows, T steps, N numbers of an observation, D width, n numbers of a packed state.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tttstream.errors import ConfigError, DependencyError, ShapeError, StateError
from tttstream.state import pack, unpack
from tttstream_agents.errors import ObservationError
from tttstream_agents.pose_memory import PoseMemory
from tttstream_agents.trunk import Trunk

try:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase
    from torchrl.data import Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules import recurrent_mode, set_recurrent_mode
except ModuleNotFoundError as error:
    raise DependencyError(f"{error.name} is not installed: pip install 'tttstream[torchrl]'") from error

__all__ = ["TTTModule", "state_values"]


class TTTModule(TensorDictModuleBase):
    """Like LSTMModule and GRUModule, with any bounded memory: observations in, features [.., D] out.

    numbers: N, of all observations of `in_keys` together. in_key or in_keys: the keys of the observations. out_key: the
    key of the features. state_key: the key of the packed state [.., n], zeros at the start of an episode; the next
    state is under ("next", state_key). init_key: true on the first step of an episode (torchrl.envs.InitTracker).
    memory, dim, depth, heads, positions, options: as `tttstream_agents.MemoryPolicy`. places: a memory of places, whose
    indices count the numbers of all `in_keys` in their order.

    Outside of recurrent mode (the default, used by collectors) each element is a single step with its own state. In
    recurrent mode (`with set_recurrent_mode(True)`, used by losses) the last dimension is time, and all steps are
    computed in parallel. A row starts from the state stored at its first step. If `init_key` is true inside the row,
    it continues from the state stored there: zeros at the start of an episode, an earlier state at the start of a slice
    of a replay buffer. The next state of every step is then the last state of the row, which a burn-in needs.

    Raises StateError if an episode continues outside of recurrent mode and no state is stored, as happens without
    the primer.
    """

    def __init__(
        self,
        numbers: int,
        memory: str = "ttt_linear",
        *,
        in_key: str | None = None,
        in_keys: Sequence[Any] | None = None,
        out_key: Any = "features",
        state_key: str = "memory",
        init_key: Any = "is_init",
        dim: int = 64,
        depth: int = 1,
        heads: int = 2,
        positions: bool = True,
        options: dict[str, Any] | None = None,
        places: PoseMemory | None = None,
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        if (in_key is None) == (in_keys is None):
            raise ConfigError(f"expected either in_key or in_keys, got {in_key = } and {in_keys = }")
        self.trunk = Trunk(
            numbers, None, memory, dim=dim, depth=depth, heads=heads, positions=positions, options=options,
            places=places,
        )  # fmt: skip
        if not all(one.bounded for one in self.trunk.memories):
            raise ConfigError(f"the state of {memory!r} grows, and a state of TorchRL cannot: use 'window'")
        self.numbers, self.default_recurrent_mode = numbers, default_recurrent_mode
        self.observation_keys = [in_key] if in_keys is None else list(in_keys)
        self.state_key, self.init_key, self.out_key = state_key, init_key, out_key
        self.in_keys = [*self.observation_keys, state_key, init_key]
        self.out_keys = [out_key, ("next", state_key)]
        self._fresh = self.trunk.initial_state(1)

    @property
    def recurrent_mode(self) -> bool:
        """Whether the last dimension is time."""
        mode = recurrent_mode()
        return self.default_recurrent_mode if mode is None else bool(mode)

    @property
    def state_size(self) -> int:
        """n, the numbers of a packed state."""
        return pack(self._fresh).shape[1]

    def make_tensordict_primer(self) -> Any:
        """The transform with which an environment passes the state from step to step."""
        return TensorDictPrimer({self.state_key: Unbounded(shape=(self.state_size,))}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        try:
            return self._forward(tensordict)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise StateError(
                "a memory cannot run under vmap: use GAE(value_network=…, deactivate_vmap=True), or "
                "GAE(value_network=None) after state_values(value, data)"
            ) from error

    def _forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape = tensordict.shape
        recurrent = self.recurrent_mode
        if recurrent and not shape:
            raise ShapeError("recurrent mode needs a time dimension, and there is none")
        steps = shape[-1] if recurrent else 1
        rows = math.prod(shape) // steps

        def lay(x: Tensor) -> Tensor:  # [*shape, ...] -> [T, S, ...]
            return x.reshape(rows, steps, *x.shape[len(shape) :]).transpose(0, 1)

        seen = [self._numbers(tensordict, key, len(shape)) for key in self.observation_keys]
        x = lay(torch.cat(seen, -1))
        if x.shape[-1] != self.numbers:
            raise ObservationError(f"expected {self.numbers} numbers in {self.observation_keys}, got {x.shape[-1]}")
        starts, flat = tensordict.get(self.init_key, None), tensordict.get(self.state_key, None)
        if starts is None:
            raise StateError(f"there is no {self.init_key!r}: append torchrl.envs.InitTracker() to the environment")
        if starts.numel() != math.prod(shape):
            raise ShapeError(
                f"{self.init_key!r} must hold one flag for each of {list(shape)}, got {list(starts.shape)}"
            )
        starts = lay(starts.reshape(shape)).bool()
        if flat is not None and flat.shape != (*shape, self.state_size):
            raise StateError(
                f"{self.state_key!r} must have shape {[*shape, self.state_size]}, got {list(flat.shape)}: is it the "
                "state of another memory?"
            )
        flat = None if flat is None else lay(flat)
        if recurrent:
            self._check_order(flat, starts, len(shape))
        else:
            self._check_carried(x, flat, starts)
        features, end = self._remember(x, flat, starts)
        tensordict.set(self.out_key, features.transpose(0, 1).reshape(*shape, -1))
        tensordict.set(("next", self.state_key), end[:, None].expand(-1, steps, -1).reshape(*shape, -1))
        return tensordict

    def _check_carried(self, x: Tensor, flat: Tensor | None, starts: Tensor) -> None:
        """Raise StateError if an episode continues without a state. Outside of recurrent mode."""
        going = ~starts
        if flat is None and bool(going.any()):
            raise StateError(
                f"there is no {self.state_key!r} inside an episode, so the memory would be lost: append "
                "memory.make_tensordict_primer() to the environment, after InitTracker()"
            )
        # after a step the state is never all zeros, except one that is the age alone; if the observation is zeros too,
        # the specs are being checked
        if flat is not None and flat.shape[-1] > 1 and bool((going & ~flat.any(-1) & x.any(-1)).any()):
            warnings.warn(
                f"{self.state_key!r} is all zeros inside an episode, so the memory of its start is lost: is "
                f"{('next', self.state_key)} one of the out_keys of the policy, and did this policy play it?",
                stacklevel=4,
            )

    def _check_order(self, flat: Tensor | None, starts: Tensor, dimensions: int) -> None:
        """Raise ShapeError if the rows of one dimension are environments and not time. In recurrent mode."""
        if flat is None and not bool(starts[0].all()):
            warnings.warn(
                f"a row starts inside an episode and has no {self.state_key!r}: its memory starts with zeros",
                stacklevel=4,
            )
        if flat is None or dimensions > 1 or len(starts) < 2:
            return
        age = flat[..., -1]  # it grows with every step of one environment
        if bool((~starts[1:] & ~starts[:-1] & flat[1:].any(-1) & (age[1:] == age[:-1])).any()):
            raise ShapeError(
                "in recurrent mode the last dimension is time, but its states are not successive: act in environments "
                "outside of recurrent mode"
            )

    def _remember(self, x: Tensor, flat: Tensor | None, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Features [T, S, D] of x [T, S, N] with the packed states [T, S, n], and the packed states [S, n] after it."""
        steps, rows = starts.shape
        starts = starts.clone()
        starts[0] = False  # a row starts from the stored state
        if flat is None or not bool(flat[starts].any()):
            state = self.trunk.initial_state(rows) if flat is None else unpack(flat[0], self._fresh)
            features, state = self.trunk.remember(x, state, starts)
            return features, pack(state)
        starts[0] = True
        row, begin = starts.T.nonzero().unbind(1)  # of each piece
        lengths = torch.cat([row * steps + begin, starts.new_full((1,), steps * rows, dtype=torch.long)]).diff()
        places, parts, ends = [], [], flat.new_empty(len(row), flat.shape[-1])
        for length in lengths.unique().tolist():  # pieces of the same length are computed together
            piece = (lengths == length).nonzero().squeeze(1)
            span, own = begin[piece] + torch.arange(length, device=x.device)[:, None], row[piece]
            state = unpack(flat[begin[piece], own], self._fresh)
            part, state = self.trunk.remember(x[span, own], state, torch.zeros_like(span, dtype=torch.bool))
            places.append((span * rows + own).flatten())
            parts.append(part.flatten(0, 1))
            ends = ends.index_copy(0, piece, pack(state))
        features = torch.cat(parts)[torch.cat(places).argsort()]
        return features.unflatten(0, (steps, rows)), ends[starts.sum(0).cumsum(0) - 1]

    def _numbers(self, tensordict: TensorDictBase, key: Any, leading: int) -> Tensor:
        x = tensordict.get(key, None)
        if x is None:
            raise ObservationError(f"there is no observation {key!r}: in_keys are {self.observation_keys}")
        x = x.unsqueeze(-1) if x.dim() == leading else x.flatten(leading)
        x = x.to(self.trunk.norm.weight.dtype)
        if not self.recurrent_mode and not bool(x.isfinite().all()):
            row = (~x.isfinite()).nonzero()[0, :leading].tolist()
            raise ObservationError(f"{key!r} contains NaN or infinity" + (f" in row {row}" if row else ""))
        return x


@torch.no_grad()
def state_values(value: Any, data: TensorDictBase, key: str = "state_value") -> TensorDictBase:
    """Write the values that GAE(value_network=None) needs into the data of a collector: those of each observation and
    of the next one, computed with the state of that step, also at the end of an episode. Returns data.

    value: the whole value operator, with the memory. Raises StateError if data does not contain the next states (call
    this before deleting them), ObservationError if a reward is not finite.
    """
    memories = [module for module in value.modules() if isinstance(module, TTTModule)]
    for memory in memories:
        if ("next", memory.state_key) not in data.keys(True):
            raise StateError(f"no ('next', {memory.state_key!r}): call state_values before deleting it")
    reward = data.get(("next", "reward"), None)
    if reward is not None and not bool(reward.isfinite().all()):
        place = (~reward.isfinite()).nonzero()[0, : data.dim()].tolist()  # row, step
        raise ObservationError(f"the reward at {place} is not finite")
    with set_recurrent_mode(False):
        data.set(key, value(data.copy()).get(key))
        after = data.get("next").copy()
        for name in value.in_keys:
            if name not in after.keys(True):
                after.set(name, torch.zeros_like(data.get(name)))
        for memory in memories:  # the next observation is never the start of an episode
            after.set(memory.init_key, torch.zeros_like(data.get(memory.init_key)))
        data.set(("next", key), value(after).get(key))
    return data
