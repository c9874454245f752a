"""Frame encoders (EfficientNet-Lite0, and ResNet, ConvNeXt, ViT, Swin … of torchvision) as tokens for a memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from tttstream.encoders import efficientnet
from tttstream.encoders.pyramid import DEVIATION, MEAN
from tttstream.errors import CheckpointError, ConfigError


class VisionTokens(nn.Module):
    """The last feature map of a pretrained classifier as tokens: [B, T, 3, size, size] in 0..1 -> [B, T, N, dim].

    Args:
        name: efficientnet_lite0, whose weights are installed with this package, or a name in torchvision.models, such
            as resnet18, convnext_tiny, vit_b_16, swin_t.
        size: side of the pictures. dim: width of the tokens, by a learned projection.
        weights: "none" (random), "default" (torchvision's best, through its own loader), or a file of weights (not
            for efficientnet_lite0).
        frozen: do not train the encoder; it has no gradients and stays in evaluation mode.

    side: tokens along one side. Raises ConfigError for a name or size that does not fit, CheckpointError for weights
    that cannot be loaded.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, size: int, dim: int, *, weights: str = "none", frozen: bool = True) -> None:
        super().__init__()
        self.frozen = frozen
        self.encoder, self.kind = build(name, size, weights)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        if frozen:
            self.encoder.requires_grad_(False).eval()
        training = self.encoder.training
        with torch.no_grad():
            count, width = self._features(self.encoder.eval(), torch.zeros(1, 3, size, size)).shape[1:]
        self.encoder.train(training)
        self.side = round(count**0.5)
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, dim)

    def train(self, mode: bool = True) -> VisionTokens:
        """As nn.Module's; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        images = frames.flatten(0, 1)
        if self.kind != "pyramid":  # which does it itself
            images = (images - self.mean) / self.deviation
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._features(self.encoder, images)
        return self.project(self.norm(features)).unflatten(0, frames.shape[:2])

    def _features(self, encoder: Any, images: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, tokens, width]."""
        if self.kind == "pyramid":
            return encoder.last(images).flatten(2).transpose(1, 2)
        if self.kind == "vit":
            patches = encoder._process_input(images)
            first = encoder.class_token.expand(len(images), -1, -1)
            return encoder.encoder(torch.cat([first, patches], 1))[:, 1:]
        if self.kind == "swin":
            return encoder.norm(encoder.features(images)).flatten(1, 2)
        return encoder(images).flatten(2).transpose(1, 2)


def build(name: str, size: int, weights: str) -> tuple[nn.Module, str]:
    """The part of a classifier that computes features, with its weights, and its kind."""
    if name == efficientnet.NAME:
        model = efficientnet.by_weights(weights, (32,), head=True).requires_grad_(True)
        assert model.head is not None
        model.head = model.head[:2]  # the input of the classifier, without the classifier
        return model, "pyramid"
    from torchvision import models
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.models.vision_transformer import VisionTransformer

    if name not in models.list_models(module=models):
        raise ConfigError(
            f"there is no encoder {name!r}: expected {efficientnet.NAME}, or one of torchvision.models such as resnet18"
        )
    options = {"image_size": size} if name.startswith("vit_") else {}
    try:
        model = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"encoder {name} does not take pictures of {size} pixels: {error}") from error
    if weights != "none":
        _load(model, name, weights, size)
    if isinstance(model, VisionTransformer):
        return model, "vit"
    if isinstance(model, SwinTransformer):
        return model, "swin"
    if hasattr(model, "features"):
        return model.features, "map"
    if hasattr(model, "layer4"):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(*(getattr(model, part) for part in names)), "map"
    raise ConfigError(f"encoder {name} has no feature map that is known here: take a resnet, convnext, vit or swin")


def _load(model: Any, name: str, weights: str, size: int) -> None:
    from torchvision import models
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    if weights == "default":
        best: Any = models.get_model_weights(name).DEFAULT
        place = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(best.url)
        try:
            state = best.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError) as error:
            raise CheckpointError(
                f"the weights of {name} cannot be fetched here ({error}): fetch {best.url} where there is a network "
                f"and put it at {place}, or take weights=none"
            ) from error
    else:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"there is no file of weights {weights}") from error
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{weights} cannot be read as weights of torch; is it complete?") from error
    try:
        if isinstance(model, VisionTransformer):
            state = interpolate_embeddings(size, model.patch_size, state)
        model.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"the weights do not fit {name}: {why[:200]}{' …' * (len(why) > 200)}") from error
