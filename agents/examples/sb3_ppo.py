"""Stable-Baselines3: RecurrentPPO with a TTT memory learns to remember the first card of POPGym's RepeatFirstEasy.

python agents/examples/sb3_ppo.py --steps 100000
"""

from __future__ import annotations

import argparse
import json
import time

import stable_baselines3
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from tttstream_agents.envs import make
from tttstream_agents.sb3 import RecurrentPPO

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--memory", default="ttt_linear")
args = parser.parse_args()
torch.set_num_threads(1)

envs = DummyVecEnv([lambda: Monitor(make(args.env))] * 16)
model = RecurrentPPO(
    "TTTPolicy", envs, n_steps=104, batch_size=416, n_epochs=4, learning_rate=1e-3, ent_coef=0.01, target_kl=0.05,
    seed=args.seed, device="cpu", policy_kwargs={"memory": args.memory, "dim": 32, "heads": 1},
)  # fmt: skip
began = time.process_time()
model.learn(args.steps)
seconds = time.process_time() - began
returned, _ = evaluate_policy(model, envs, 64, deterministic=True)
print(json.dumps({
    "library": f"Stable-Baselines3 {stable_baselines3.__version__}", "env": args.env, "memory": args.memory,
    "steps": model.num_timesteps, "cpu_seconds": round(seconds, 1), "return": round(float(returned), 3),
}))  # fmt: skip
