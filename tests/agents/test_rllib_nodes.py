"""RLlib on two Ray nodes of a local cluster: the env runners act on both, and the memory learns; see `make rllib`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray warns of itself when it is imported
    pytest.importorskip("ray.rllib", reason="Ray, which pins a gymnasium of its own, is absent: make rllib")
    import ray
    from ray.cluster_utils import Cluster
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from tttstream_agents.rllib import TTTRLModule

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def nodes() -> Iterator[set[str]]:
    """The ids of two nodes with one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    ray.shutdown()
    cluster.shutdown()


def test_it_learns_with_an_env_runner_on_each_node(nodes: set[str], repeat_first: Any, tmp_path: Path) -> None:
    """Chance, and all that there is without a memory, is -0.33."""
    assert len(nodes) == 2

    class Marked(gym.Wrapper[Any, Any, Any, Any]):
        """Leaves a file with the name of the node on which its second episode ended."""

        episodes = 0

        def reset(self, **given: Any) -> Any:
            self.episodes += 1
            if self.episodes == 3:
                (tmp_path / ray.get_runtime_context().get_node_id()).touch()
            return super().reset(**given)

    for made in (repeat_first, Marked):
        ray.cloudpickle.register_pickle_by_value(sys.modules[made.__module__])
    register_env("tttstream-nodes", lambda _: Marked(repeat_first()))
    module = RLModuleSpec(module_class=TTTRLModule, model_config={"dim": 32, "heads": 1, "max_seq_len": 20})
    algorithm = (
        PPOConfig().environment("tttstream-nodes").rl_module(rl_module_spec=module).learners(num_learners=0)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=8, num_cpus_per_env_runner=1)
        .training(
            train_batch_size_per_learner=640, minibatch_size=320, num_epochs=4, lr=1e-3, lambda_=0.95,
            entropy_coeff=0.01, grad_clip=0.5, use_kl_loss=False,
        )
        .debugging(seed=0, log_level="ERROR").build_algo()
    )  # fmt: skip
    runners = algorithm.env_runner_group
    used = runners.foreach_env_runner(lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False)
    assert set(used) == nodes
    returns = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(14)]
    assert max(returns) > 0.3, returns
    assert {path.name for path in tmp_path.iterdir()} == nodes
    algorithm.stop()
