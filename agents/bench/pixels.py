"""Times the networks for pictures on one thread: acting on a batch, and learning from a segment.

python agents/bench/pixels.py --size 84 --channels 4
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces

from tttstream_agents.encoder import CNNS, Picture


def median(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call, the median."""
    function()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return float(np.median(times))


def main() -> None:
    """Measure and print one line of JSON for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=84)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--envs", type=int, default=8, help="pictures in a step of acting")
    parser.add_argument("--batch", type=int, default=256, help="pictures in a gradient step")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = spaces.Box(0, 255, (args.size, args.size, args.channels), np.uint8)
    few, many = (
        torch.randint(0, 256, (count, args.size, args.size, args.channels), dtype=torch.uint8)
        for count in (args.envs, args.batch)
    )
    found: dict[str, tuple[float, float]] = {}
    for name in CNNS:
        picture = Picture(space, name)

        def act(picture: Picture = picture) -> None:
            with torch.no_grad():
                picture(few)

        def learn(picture: Picture = picture) -> None:
            picture(many).square().mean().backward()

        found[name] = median(act, args.repeats), median(learn, args.repeats)
    for name, (acting, learning) in found.items():
        line = {
            "cnn": name, "act_ms": round(1e3 * acting, 2), "learn_ms": round(1e3 * learning, 1),
            "act_natures": round(acting / found["nature"][0], 2),
            "learn_natures": round(learning / found["nature"][1], 2),
        }  # fmt: skip
        print(json.dumps(line))


if __name__ == "__main__":
    main()
