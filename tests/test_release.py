"""The workflow that makes a release: its steps are commands that exist here, with the expected output."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import tttstream


@pytest.fixture
def jobs(root: Path) -> dict[str, Any]:
    text = (root / ".github" / "workflows" / "release.yml").read_text("utf-8")
    found = yaml.safe_load(text)
    assert found[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true
    return found["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"].strip() for step in job["steps"] if "run" in step]


def test_its_targets_exist(jobs: dict[str, Any], root: Path) -> None:
    targets = {words.split()[1] for words in commands(jobs["build"]) if words.startswith("make ")}
    assert targets == {"dist", "docs"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_targets_make_the_packed_files(jobs: dict[str, Any], root: Path) -> None:
    makefile = (root / "Makefile").read_text("utf-8")
    site = yaml.safe_load(re.sub(r"!!python/\S+", "", (root / "mkdocs.yml").read_text("utf-8")))["site_dir"]
    assert f"tar -czf dist/documentation.tar.gz -C {Path(site).parent} {Path(site).name}" in commands(jobs["build"])
    assert "--outdir dist" in makefile
    uploads = [step["with"]["path"] for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert uploads == ["dist/"]
    assert jobs["release"]["needs"] == "build"


@pytest.mark.parametrize(("tag", "code"), [(f"v{tttstream.__version__}", 0), ("v0.0.0", 1)])
def test_a_tag_that_is_not_the_version_stops_it(jobs: dict[str, Any], root: Path, tag: str, code: int) -> None:
    (check,) = [words for words in commands(jobs["build"]) if words.startswith("test ")]
    done = subprocess.run(["bash", "-ec", check], cwd=root, env={**os.environ, "GITHUB_REF_NAME": tag})
    assert done.returncode == code


def test_every_command_is_a_line_of_shell(jobs: dict[str, Any]) -> None:
    for job in jobs.values():
        for words in commands(job):
            assert subprocess.run(["bash", "-n", "-c", words]).returncode == 0, words
            first = words.split()[0]
            assert first in {"test", "make", "tar", "gh"}, first
