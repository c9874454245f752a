"""The package as a whole: a light import, public names, one version, the program's manners, and files that agree."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from importlib.metadata import requires, version
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

import tttstream
import tttstream_agents
import tttstream_kernels
from tttstream.cli.main import COMMANDS, main

HEAVY = {"lightning", "pytorch_lightning", "cv2", "triton", "gymnasium", "av", "decord", "torchvision"}
PACKAGES = ["tttstream", "kernels/tttstream_kernels", "agents/tttstream_agents"]
PACKAGE_NAMES = [Path(package).name for package in PACKAGES]


def modules_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


class TestImport:
    def test_bare_import_needs_not_even_torch(self) -> None:
        assert not modules_after("import tttstream") & {*HEAVY, "torch", "numpy"}

    def test_no_public_name_drags_in_a_heavy_package(self) -> None:
        code = "import tttstream\nfor name in tttstream.__all__: getattr(tttstream, name)"
        assert not modules_after(code) & HEAVY

    def test_help_needs_not_even_torch(self) -> None:
        code = "from tttstream.cli.main import build_parser\nbuild_parser().format_help()"
        assert not modules_after(code) & {*HEAVY, "torch", "numpy"}

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_subcommand_is_light_until_it_runs(self, command: str) -> None:
        code = f"from tttstream.cli.main import build_parser\nbuild_parser({command!r}).format_help()"
        assert not modules_after(code) & HEAVY


class TestNames:
    @pytest.mark.parametrize("name", tttstream.__all__)
    def test_public_names_resolve(self, name: str) -> None:
        assert getattr(tttstream, name) is getattr(tttstream, name)
        assert name in dir(tttstream)

    def test_unknown_name(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'strem'"):
            _ = tttstream.strem

    def test_one_version(self, root: Path) -> None:
        assert tttstream.__version__ == version("tttstream") == tttstream_agents.__version__
        assert f"## [{tttstream.__version__}]" in (root / "CHANGELOG.md").read_text("utf-8")

    @pytest.mark.parametrize("package", [tttstream, tttstream_kernels, tttstream_agents])
    def test_every_public_method_has_or_inherits_a_docstring(self, package: types.ModuleType) -> None:
        missing = []
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__") or found.name == "tttstream.models.encoders":  # a program; an old name
                continue
            try:
                module = importlib.import_module(found.name)
            except tttstream.errors.DependencyError:
                continue
            kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == found.name]
            for kind in (kind for kind in kinds if not kind.__name__.startswith("_")):
                for name, member in vars(kind).items():
                    method = isinstance(member, (property, classmethod, staticmethod)) or (
                        inspect.isfunction(member) and member.__name__ == name
                    )
                    if method and not name.startswith("_") and not inspect.getdoc(getattr(kind, name)):
                        missing.append(f"{found.name}.{kind.__name__}.{name}")
        assert not missing

    def test_all_errors_share_one_root(self) -> None:
        from tttstream import errors

        assert errors.TTTStreamError is tttstream_kernels.TTTStreamError
        found = [value for module in (errors, tttstream_kernels) for value in vars(module).values()]
        found = [value for value in found if isinstance(value, type) and issubclass(value, Exception)]
        assert len(found) > 8
        assert all(issubclass(error, tttstream.TTTStreamError) for error in found)


class TestProgram:
    @pytest.fixture
    def command(self, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
        """A subcommand `trial` whose `run` a test replaces."""
        module = types.SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: 0)
        monkeypatch.setitem(COMMANDS, "trial", "a trial")
        monkeypatch.setitem(sys.modules, "tttstream.cli.trial", module)  # type: ignore[arg-type]
        return module

    def test_exit_code_of_the_command(self, command: types.SimpleNamespace) -> None:
        command.run = lambda args: 3
        assert main(["trial"]) == 3

    @pytest.mark.parametrize("raised", [tttstream.errors.SourceError, tttstream_kernels.ShapeError])
    def test_a_users_mistake_is_one_line(
        self, command: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], raised: type[Exception]
    ) -> None:
        def run(args: object) -> int:
            raise raised("no file at a.mp4:\n  check the path")

        command.run = run
        assert main(["trial"]) == 2
        assert capsys.readouterr() == ("", "tttstream: error: no file at a.mp4: check the path\n")

    def test_interrupt(self, command: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
        def run(args: object) -> int:
            raise KeyboardInterrupt

        command.run = run
        assert main(["trial"]) == 130
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("words", [["watch", "walk"], ["fit"]])
    def test_interrupt_while_it_is_still_loading(self, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def import_module(name: str) -> types.ModuleType:
            raise KeyboardInterrupt

        monkeypatch.setattr("tttstream.cli.main.import_module", import_module)
        assert main(words) == 130

    def test_the_end_of_a_process(self, command: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python looks through no objects any more; where a program calls `main`, nothing changes for it."""
        registered: list[object] = []
        monkeypatch.setattr("atexit.register", registered.append)
        command.run = lambda args: 0
        assert main(["trial"]) == 0
        assert not registered
        monkeypatch.setattr("sys.argv", ["tttstream", "trial"])
        assert main() == 0
        assert registered == [gc.freeze]

    def test_a_fault_of_ours_keeps_its_traceback(self, command: types.SimpleNamespace) -> None:
        def run(args: object) -> int:
            raise ValueError("ours")

        command.run = run
        with pytest.raises(ValueError, match="ours"):
            main(["trial"])

    @pytest.mark.parametrize("words", [[], ["wach"], ["info", "--fast"], ["--fast"]])
    def test_wrong_arguments_are_one_line(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
        assert re.fullmatch(r"tttstream: error: .+ \(see `tttstream( info)? --help`\)\n", err)

    def test_as_a_process(self) -> None:
        done = subprocess.run([sys.executable, "-m", "tttstream", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"tttstream {tttstream.__version__}\n", "")

    def test_info(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^tttstream +0\.", out)
        chosen = "auto takes  (torch|linear, token mode: triton)"
        for word in (
            r"python +3\.",
            r"torch \d",
            "cpu: ",
            r"triton +(yes|no)\b",
            "kernels +token mode: linear",
            chosen,
        ):
            assert re.search(word, out), word
        assert all(f"{name}: " in out for name in tttstream.memory.names())

    @pytest.mark.parametrize(
        ("found", "interpret", "cuda", "says"),
        [
            (None, None, True, "no: triton is not installed"),
            (object(), "1", False, "yes, in the interpreter"),
            (object(), None, True, "yes, on CUDA"),
            (object(), None, False, "no: torch sees no CUDA device"),
        ],
    )
    def test_info_says_why_triton_cannot_run(
        self, monkeypatch: pytest.MonkeyPatch, found: object, interpret: str | None, cuda: bool, says: str
    ) -> None:
        from tttstream.cli import info

        monkeypatch.setattr(info, "find_spec", lambda name: found)
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        if interpret:
            monkeypatch.setenv("TRITON_INTERPRET", interpret)
        assert info.triton_status().startswith(says)


class TestFiles:
    def test_constraints_are_plain_pins_within_the_ranges(self, root: Path) -> None:
        lines = (root / "constraints.txt").read_text("utf-8").splitlines()
        pins = [Requirement(line) for line in lines if not line.startswith("#")]
        for pin in pins:
            assert pin.url is None
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        here = {pin.name: str(pin.specifier)[2:] for pin in pins if pin.marker is None or pin.marker.evaluate()}
        needed = [Requirement(text) for text in requires("tttstream") or []]
        core = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": "dev"})]
        assert len(core) > 20
        for need in core:
            assert need.name == "tttstream" or need.specifier.contains(here[need.name]), need

    def test_triton_is_imported_only_in_its_own_files(self, root: Path) -> None:
        for package in PACKAGES:
            for path in (root / package).rglob("*.py"):
                found = re.search(r"^\s*(import|from) triton\b", path.read_text("utf-8"), re.MULTILINE)
                assert not found or path.stem.endswith("_triton"), path

    def test_no_module_imports_itself_by_way_of_others(self) -> None:
        """Also not for types alone: a circle of modules cannot be read from its bottom up."""
        graph = grimp.build_graph(*PACKAGE_NAMES, exclude_type_checking_imports=False, cache_dir=None)
        below = {name: set(graph.find_modules_directly_imported_by(name)) for name in sorted(graph.modules)}
        while free := [name for name, imported in below.items() if not imported & set(below)]:
            for name in free:
                del below[name]
        while free := [name for name in below if not any(name in imported for imported in below.values())]:
            for name in free:
                del below[name]
        assert not below

    @pytest.mark.parametrize("package", PACKAGES)
    def test_packages_are_typed(self, root: Path, package: str) -> None:
        assert (root / package / "py.typed").is_file()
