"""RLlib: PPO with a TTT memory and several env runners learns POPGym's RepeatFirstEasy, on a local Ray or a cluster.

make rllib                                              # once: the environment that Ray needs for itself
.venv-rllib/bin/python agents/examples/rllib_ppo.py --steps 100000 --env-runners 2
.venv-rllib/bin/python agents/examples/rllib_ppo.py --address auto --env-runners 64      # on a running Ray cluster
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from tttstream_agents.rllib import TTTRLModule

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--memory", default="ttt_linear")
parser.add_argument("--env-runners", type=int, default=2)
parser.add_argument("--address", help="of a Ray cluster; a local one is started where there is none")
args = parser.parse_args()


def make_env(_: Any) -> Any:
    """One environment, in whichever process."""
    from tttstream_agents.envs import make

    return make(args.env)


ray.init(address=args.address, include_dashboard=False, log_to_driver=False, logging_level="error")
register_env("example", make_env)
module = RLModuleSpec(
    module_class=TTTRLModule, model_config={"memory": args.memory, "dim": 32, "heads": 1, "max_seq_len": 104}
)
config = (
    PPOConfig()
    .environment("example")
    .rl_module(rl_module_spec=module)
    .env_runners(
        num_env_runners=args.env_runners, num_envs_per_env_runner=max(1, 16 // max(1, args.env_runners)),
        num_cpus_per_env_runner=0.5,
    )
    .learners(num_learners=0)
    .training(
        lr=1e-3, gamma=0.99, lambda_=0.95, train_batch_size_per_learner=1664, minibatch_size=416, num_epochs=4,
        entropy_coeff=0.01, grad_clip=0.5, use_kl_loss=False, vf_loss_coeff=0.5, vf_clip_param=math.inf,
        clip_param=0.2,
    )
    .debugging(seed=args.seed, log_level="ERROR")
)  # fmt: skip
algorithm = config.build_algo()
began, steps, returned = time.perf_counter(), 0, math.nan
while steps < args.steps:
    result = algorithm.train()["env_runners"]
    steps, returned = int(result["num_env_steps_sampled_lifetime"]), float(result["episode_return_mean"])
algorithm.stop()
ray.shutdown()
print(json.dumps({
    "library": f"RLlib (Ray {ray.__version__}), {args.env_runners} env runners", "env": args.env,
    "memory": args.memory, "steps": steps, "seconds": round(time.perf_counter() - began, 1),
    "return": round(returned, 3),
}))  # fmt: skip
