"""Modules under their names of 0.1: they warn, and are the modules of today."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

import tttstream
from tttstream._moved import PLACES
from tttstream.models.masks import MixtureModel


@pytest.mark.parametrize("old", PLACES)
def test_an_old_name_is_the_same_module_and_warns(old: str) -> None:
    name = f"tttstream.{old}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} is now tttstream.{PLACES[old]}") as caught:
        found = import_module(name)
    assert found is import_module(f"tttstream.{PLACES[old]}")
    assert found.__spec__ is not None
    assert found.__spec__.name == f"tttstream.{PLACES[old]}"
    assert caught


def test_an_import_statement_warns_where_it_stands() -> None:
    code = (
        "import tttstream.model, tttstream\n"
        "from tttstream.masks.labels import VOID\n"
        "from tttstream.map.codes import PatchCodes\n"
        "assert tttstream.model.FrameModel is tttstream.models.FrameModel\n"
        "assert PatchCodes.__module__ == 'tttstream.models.map.codes'\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert [line.partition(" ")[0] for line in done.stderr.splitlines() if "Deprecation" in line] == [
        "<string>:1:",
        "<string>:2:",
        "<string>:3:",
    ]


def test_an_attribute_of_the_package_warns() -> None:
    vars(tttstream).pop("classifier", None)
    with pytest.warns(DeprecationWarning, match=r"tttstream\.classifier is now") as caught:
        found = tttstream.classifier
    assert found is import_module("tttstream.models.classifier")
    assert caught[0].filename == __file__


def test_others_are_not_found() -> None:
    for name in ("tttstream.strem", "tttstream.masks.label", "numpy.model"):
        with pytest.raises(ModuleNotFoundError):
            import_module(name)


def test_loaders_of_one_kind_point_to_the_registry(
    tmp_path: Path, make_mask_model: Callable[..., MixtureModel]
) -> None:
    with pytest.warns(DeprecationWarning, match=r"masks\.save is now model\.save"):
        tttstream.masks.save(make_mask_model(torch.float32), tmp_path)
    with pytest.warns(DeprecationWarning, match=r"masks\.load is now tttstream\.models\.load"):
        assert isinstance(tttstream.masks.load(tmp_path), tttstream.masks.MixtureModel)
    with pytest.warns(DeprecationWarning, match=r"map\.load is now tttstream\.models\.load"):
        assert isinstance(tttstream.map.load(), tttstream.map.MapModel)
