"""TorchRL, off policy: double Q-learning from a replay buffer of sequences with stored initial states.

python agents/examples/torchrl_dqn.py --steps 100000

As in R2D2 (Kapturowski et al., ICLR 2019), each sequence is replayed from the memory state that it had when it was
collected. The buffer keeps one state for each sequence.
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import torch
import torchrl
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.nn import functional as F
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, GymWrapper, InitTracker, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import MLP, EGreedyModule, QValueModule, set_recurrent_mode

from tttstream_agents.envs import make
from tttstream_agents.torchrl import TTTModule

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--memory", default="ttt_linear")
args = parser.parse_args()
torch.manual_seed(args.seed)
torch.set_num_threads(1)

ENVS, STEPS, DIM, GAMMA, BATCH = 16, 52, 32, 0.97, 16
base = SerialEnv(ENVS, [lambda: GymWrapper(make(args.env))] * ENVS)
base.set_seed(args.seed)
numbers, actions = base.observation_spec["observation"].shape[-1], base.action_spec.shape[-1]

memory = TTTModule(numbers, args.memory, in_key="observation", dim=DIM, heads=1)
head = TensorDictModule(MLP(DIM, actions, num_cells=[DIM]), ["features"], ["action_value"])
online = TensorDictSequential(memory, head)
target = copy.deepcopy(online).requires_grad_(False)
env = TransformedEnv(base, Compose(InitTracker(), memory.make_tensordict_primer(), RewardSum()))
greedy = EGreedyModule(env.action_spec, annealing_num_steps=args.steps // 2, eps_end=0.02)
policy = TensorDictSequential(online, QValueModule(action_space="one-hot"), greedy)

updates = -(-args.steps // (ENVS * STEPS))
collector = Collector(env, policy, frames_per_batch=ENVS * STEPS, total_frames=updates * ENVS * STEPS)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(2000), batch_size=BATCH)
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
began, returns = time.process_time(), torch.zeros(0)


def values(network: TensorDictSequential, sequences: TensorDict, state: torch.Tensor) -> torch.Tensor:
    """Action values [S, T, A] of sequences [S, T] from the states [S, n] that they began with."""
    steps = sequences.select("observation", "is_init")
    kept = torch.zeros(*steps.shape, state.shape[-1])  # episodes that begin inside a sequence begin with zeros
    kept[:, 0] = state
    with set_recurrent_mode(True):
        return network(steps.set(memory.state_key, kept))["action_value"]


for data in collector:
    greedy.step(ENVS * STEPS)
    kept = data.select("observation", "is_init", "action", ("next", "reward"), ("next", "terminated"), ("next", "done"))
    buffer.extend(TensorDict({"steps": kept, "state": data[memory.state_key][:, 0]}, [ENVS]))
    returns = torch.cat([returns, data["next", "episode_reward"][data["next", "done"]]])[-100:]
    for _ in range(8):
        sample = buffer.sample()
        steps, state = sample["steps"], sample["state"]
        found = values(online, steps, state)
        with torch.no_grad():
            best = found[:, 1:].argmax(-1, keepdim=True)  # double: the online network chooses, the target one says
            following = values(target, steps, state)[:, 1:].gather(-1, best)[..., 0]
        reward, ended, done = (steps["next", key][:, :-1, 0] for key in ("reward", "terminated", "done"))
        wanted = reward + GAMMA * torch.where(ended, 0.0, following)
        taken = (found * steps["action"]).sum(-1)[:, :-1]
        counts = ended | ~done  # after a truncation the next row is of another episode
        loss = F.smooth_l1_loss(taken[counts], wanted[counts])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(online.parameters(), 1.0)
        optimizer.step()
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.01)
collector.shutdown()
print(json.dumps({
    "library": f"TorchRL {torchrl.__version__}, off policy", "env": args.env, "memory": args.memory,
    "steps": updates * ENVS * STEPS, "cpu_seconds": round(time.process_time() - began, 1),
    "return": round(float(returns.mean()), 3),
}))  # fmt: skip
