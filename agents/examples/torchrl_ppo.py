"""TorchRL: ClipPPOLoss and GAE with a TTT memory learn to remember the first card of POPGym's RepeatFirstEasy.

python agents/examples/torchrl_ppo.py --steps 100000
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torchrl
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymWrapper, InitTracker, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import MLP, ActorValueOperator, OneHotCategorical, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tttstream_agents.envs import make
from tttstream_agents.torchrl import TTTModule, state_values

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--memory", default="ttt_linear")
args = parser.parse_args()
torch.manual_seed(args.seed)
torch.set_num_threads(1)

ENVS, STEPS, DIM = 16, 104, 32
base = SerialEnv(ENVS, [lambda: GymWrapper(make(args.env))] * ENVS)
base.set_seed(args.seed)
numbers, actions = base.observation_spec["observation"].shape[-1], base.action_spec.shape[-1]

memory = TTTModule(numbers, args.memory, in_key="observation", dim=DIM, heads=1)
head = TensorDictModule(MLP(DIM, actions, num_cells=[DIM]), ["features"], ["logits"])
actor = ProbabilisticActor(head, in_keys=["logits"], distribution_class=OneHotCategorical, return_log_prob=True)
both = ActorValueOperator(memory, actor, TensorDictModule(MLP(DIM, 1, num_cells=[DIM]), ["features"], ["state_value"]))
policy, value = both.get_policy_operator(), both.get_value_operator()
env = TransformedEnv(base, Compose(InitTracker(), memory.make_tensordict_primer(), RewardSum()))

updates = -(-args.steps // (ENVS * STEPS))
collector = Collector(env, policy, frames_per_batch=ENVS * STEPS, total_frames=updates * ENVS * STEPS)
gae = GAE(gamma=0.99, lmbda=0.95, value_network=None)  # state_values is exact where episodes end
loss = ClipPPOLoss(policy, value, entropy_coeff=0.01, critic_coeff=0.5, normalize_advantage=True)
optimizer = torch.optim.Adam(both.parameters(), lr=1e-3)
began, returns = time.process_time(), torch.zeros(0)
for data in collector:
    gae(state_values(value, data))
    data = data.exclude(("next", memory.state_key))  # only the states where rows begin are needed from here on
    for _ in range(4):
        for rows in torch.randperm(ENVS).split(4):
            terms = loss(data[rows])
            optimizer.zero_grad()
            (terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]).backward()
            torch.nn.utils.clip_grad_norm_(both.parameters(), 0.5)
            optimizer.step()
    returns = torch.cat([returns, data["next", "episode_reward"][data["next", "done"]]])[-100:]
collector.shutdown()
print(json.dumps({
    "library": f"TorchRL {torchrl.__version__}", "env": args.env, "memory": args.memory,
    "steps": updates * ENVS * STEPS, "cpu_seconds": round(time.process_time() - began, 1),
    "return": round(float(returns.mean()), 3),
}))  # fmt: skip
