"""Pretrained encoders of frames by name."""

from collections.abc import Sequence

from tttstream.encoders import efficientnet
from tttstream.encoders.pyramid import Encoder
from tttstream.encoders.vision import VisionTokens
from tttstream.errors import ConfigError

__all__ = ["Encoder", "VisionTokens", "load"]

DEFAULT = efficientnet.NAME


def load(
    name: str = DEFAULT, strides: Sequence[int] = (8, 16), *, head: bool = False, weights: str = "default"
) -> Encoder:
    """A frozen encoder that returns one map of features for each stride; see `Encoder`.

    name: "efficientnet_lite0", whose ImageNet weights are installed with this package; a name of torchvision.models,
    such as "resnet18"; "timm:NAME" or "hf:NAME" where timm or Hugging Face transformers is installed. strides: pixels
    of the frame along the side of a feature. head: keep the classifier too (`classify`), of efficientnet_lite0 only.
    weights: "default", pretrained weights, which are downloaded if necessary (those of efficientnet_lite0 are
    installed); "none", random; or a file, for torchvision.

    >>> encoder = tttstream.encoders.load("efficientnet_lite0", strides=(4, 8, 16))
    >>> quarter, eighth, sixteenth = encoder(frames)  # frames [n, 3, H, W] in 0..1

    Raises ConfigError for a name or stride that does not exist, DependencyError for a library that is not installed,
    CheckpointError for weights that cannot be downloaded or differ from the released ones.
    """
    strides = tuple(strides)
    if name == DEFAULT:
        return efficientnet.by_weights(weights, strides, head)
    if head:
        raise ConfigError(f"{name}: only {DEFAULT} has a classifier here, leave out head")
    from tttstream.encoders import libraries

    library, _, model = name.rpartition(":")
    if library not in libraries.LOADERS:
        raise ConfigError(
            f"there is no encoder {name!r}: expected {DEFAULT}, a name of torchvision, timm:NAME or hf:NAME"
        )
    return libraries.LOADERS[library](model, strides, weights)
