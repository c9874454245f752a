"""The hyper-parameters of training. They are read from YAML files and from the command line, and each has a help
text."""

# ruff: noqa: RUF009
import dataclasses
import difflib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttstream.io.presets import folder as shipped
from tttstream_agents.errors import TrainingError, one_line


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of `Config` with its default value, its sentence and its allowed values."""
    factory = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return dataclasses.field(**factory, metadata={"help": help, "choices": choices})


TINY, INF = 1e-12, float("inf")
RANGES = {
    "lr": (TINY, INF), "gamma": (0, 1), "gae_lambda": (0, 1), "clip": (TINY, INF), "value_coef": (0, INF),
    "entropy_coef": (-INF, INF), "max_grad_norm": (TINY, INF), "target_kl": (0, INF),
    "rebuild_coef": (0, INF), "predict_coef": (0, INF), "keep_coef": (0, INF), "stop_return": (-INF, INF),
}  # fmt: skip
"""The smallest and the largest value of the numbers of a config."""
KINDS: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping", list: "a list"
}  # fmt: skip
"""The types of the options, for messages."""
OTHER_NAMES = {
    "env_id": "env", "total_timesteps": "steps", "learning_rate": "lr", "num_envs": "n_envs", "n_steps": "rollout",
    "num_steps": "rollout", "batch_size": "minibatch", "minibatch_size": "minibatch", "n_epochs": "epochs",
    "num_epochs": "epochs", "update_epochs": "epochs", "clip_range": "clip", "clip_coef": "clip", "clip_param": "clip",
    "ent_coef": "entropy_coef", "vf_coef": "value_coef", "anneal_lr": "anneal", "hidden_size": "dim",
    "lstm_hidden_size": "dim", "max_seq_len": "segment",
}  # fmt: skip
"""The names of options in Stable-Baselines3, CleanRL and RLlib, for the messages about unknown options."""


@dataclass(frozen=True)
class Config:
    """All options of a training run."""

    env: str = option("CartPole-v1", "gymnasium id of the environment, also of popgym, MiniGrid, ALE ...")
    env_args: dict[str, Any] = option(dict, "arguments of the environment, key=value ... or JSON")
    wrappers: list[Any] = option(
        list,
        'wrappers of the environment, innermost first, as JSON: \'["GrayscaleObservation", {"TimeLimit": {...}}]\'',
    )
    steps: int = option(500_000, "environment steps in total")
    seed: int = option(0, "seed of weights, actions and episodes")
    memory: str = option("ttt_linear", "a memory that `tttstream info` lists, or framestack, or mlp (no memory)")
    dim: int = option(64, "width of the policy")
    depth: int = option(1, "number of memories, one after another")
    heads: int = option(2, "heads of a memory")
    options: dict[str, Any] = option(dict, "further options of the memory, as JSON: '{\"mini_batch\": 8}'")
    positions: bool = option(True, "the policy sees the number of steps since the start of the episode, as waves")
    period: int = option(
        1024, "longest period of these waves, 4 to 1024; in episodes longer than those of training, longer periods harm"
    )
    previous_action: bool = option(True, "the policy sees its previous action")
    previous_reward: bool = option(False, "the policy sees the previous reward")
    action_masks: bool = option(True, "obey masks of legal actions, in info or under 'action_mask' in observations")
    cnn: str = option(
        "auto",
        "network for pictures; auto: nature from 64 pixels, else strided",
        ("auto", "nature", "impala", "strided"),
    )
    normalise_observations: bool = option(False, "scale numbers of a Box by their running mean and deviation")
    normalise_rewards: bool = option(False, "divide rewards by the running deviation of the discounted return")
    gate: bool = option(False, "a gate around each memory that starts near the identity (GTrXL)")
    rebuild_coef: float = option(0.0, "weight of an auxiliary loss: reconstruct the observation from the features")
    predict_coef: float = option(0.0, "weight of an auxiliary loss: predict the next observation")
    keep_coef: float = option(
        0.0, "weight of an auxiliary loss: the mean learning rate of the memory, so that it keeps what it has learned"
    )
    places: dict[str, Any] = option(
        dict, "a memory of places, key=value ... or JSON: at, the part of observations with the place; ask; width ..."
    )
    n_envs: int = option(16, "environments in parallel")
    rollout: int = option(128, "steps of each environment between two updates")
    segment: int = option(0, "steps of a training sequence, a divisor of rollout; 0 for the whole rollout")
    minibatch: int = option(256, "steps in a gradient step, in whole segments")
    epochs: int = option(10, "epochs over each rollout")
    lr: float = option(1e-3, "learning rate of Adam")
    anneal: bool = option(True, "decrease the learning rate to 0 over the run")
    gamma: float = option(0.99, "discount")
    gae_lambda: float = option(0.95, "lambda of generalised advantage estimation")
    clip: float = option(0.2, "PPO's bound on the change of probabilities")
    clip_value: bool = option(False, "bound the change of the value too")
    value_coef: float = option(0.5, "weight of the critic's loss")
    entropy_coef: float = option(0.01, "weight of the entropy")
    max_grad_norm: float = option(0.5, "gradients are scaled down to this norm")
    target_kl: float = option(0.02, "end an update early if the policy has changed more than this; 0 for never")
    recompute: bool = option(False, "recompute the hidden states at the starts of segments before each further epoch")
    autoreset: str = option("next_step", "when an environment starts its next episode", ("next_step", "same_step"))
    workers: int = option(0, "0: all environments in this process; 1: each in its own process")
    stop_return: float = option(
        float("inf"), "stop, and keep the policy, when the mean return of the last 100 episodes reaches this"
    )
    checkpoint_every: int = option(10, "updates between checkpoints")
    device: str = option("cpu", "cpu, cuda (cuda:1), mps or auto")

    def __post_init__(self) -> None:
        for name in ("steps", "dim", "depth", "heads", "n_envs", "rollout", "minibatch", "epochs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:  # so NaN is refused too
                raise TrainingError(f"{name} must lie between {low:g} and {high:g}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63 or self.workers < 0:
            raise TrainingError(f"seed and workers cannot be negative, seed is below 2^63: {self.seed}, {self.workers}")
        object.__setattr__(self, "segment", self.segment or self.rollout)
        if self.segment < 1 or self.rollout % self.segment:
            raise TrainingError(f"segment must divide rollout = {self.rollout}, got {self.segment}")
        if self.minibatch < self.segment:
            raise TrainingError(
                f"minibatch must be at least one segment of {self.segment} steps, got {self.minibatch}: shorten segment"
            )
        if self.autoreset not in ("next_step", "same_step"):
            raise TrainingError(f"autoreset must be next_step or same_step, got {self.autoreset!r}")

    def to_json(self) -> str:
        """The options as a JSON object."""
        values = dataclasses.asdict(self)
        values["stop_return"] = None if self.stop_return == float("inf") else self.stop_return
        return json.dumps(values, indent=2) + "\n"


def build(values: dict[str, Any], source: str) -> Config:
    """A checked config from a mapping. Messages name `source`. Raises TrainingError."""
    from tttstream.cli.numbers import whole  # here, so that a wrapper does not import the command line

    fields = {field.name: field for field in dataclasses.fields(Config)}
    unknown = sorted(str(name) for name in set(values) - set(fields))
    if unknown:
        raise TrainingError(
            f"{source}: unknown option {', '.join(name + near(name) for name in unknown)}; known are "
            f"{', '.join(fields)}"
        )
    checked = {}
    for name, value in values.items():
        kind = type(getattr(Config(), name))
        if name == "stop_return" and value is None:
            continue
        if kind is int and isinstance(value, float | str):
            with suppress(ValueError):
                value = whole(str(value))  # YAML reads 1e6 as a text, and 1.0e+6 as a float
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            with suppress(ValueError):
                value = float(value)  # YAML reads 3e-4 as a text
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TrainingError(f"{source}: {name} must be {KINDS[kind]}, got {value!r}")
        checked[name] = value
    return Config(**checked)


def near(name: str) -> str:
    """The option that an unknown name probably means, as the end of a message; empty if there is none."""
    name = name.replace("-", "_")
    known = [field.name for field in dataclasses.fields(Config)]
    found = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def presets() -> Path:
    """The folder of shipped presets."""
    return shipped() / "agents"


def read(name: str) -> dict[str, Any]:
    """The values in a YAML or JSON file, or in a shipped preset by name. Raises TrainingError if there is none."""
    import yaml

    path = Path(name)
    if not path.suffix and not path.is_file():
        path = presets() / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in presets().glob("*.yaml"))) or "none"
        raise TrainingError(f"there is no config {name!r}: give a file, or one of the presets: {known}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected options with values, got {type(values).__name__}")
    return values
