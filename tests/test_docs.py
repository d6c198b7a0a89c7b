"""README and docs: every block runs, or a comment before it says what it needs; every link leads somewhere.

A block that a test cannot run follows `<!-- needs: WORDS -->`, with words of NEEDS. Its commands are checked all the
same: options, values, make targets, scripts and extras must exist. All other console blocks of a page are run in their
order by bash in an empty directory, with small numbers; `adc-edge trainer` runs beside what follows it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
from PIL import Image

from adc_edge.cli import COMMANDS, main
from tests.deploy.commands import check_ranks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "board": "an edge board, its package manager or its containers",
    "cluster": "torchrun for a long time, Docker, Slurm or Kubernetes",
    "data": "weights or images that are not in the repository",
    "gpu": "a GPU",
    "minutes": "minutes to hours: set-up, benchmarks, studies",
    "network": "two machines",
    "runs": "runs that were made before",
}
COMMAND_LANGUAGES, OTHER_LANGUAGES = {"console", "sh"}, {"python", "text"}
SMALLER = 100  # times fewer steps
MORE = {  # options that make a command quick, unless the page gives them
    "bench": "--rounds 1",
    "export": "--img-size 64",
    "link": "--seconds 0.5",
    "serve": "--eval-images 16",
    "trainer": "--bind tcp://127.0.0.1:5700",
}


class Block(NamedTuple):
    """A fenced block of a page, and what it says that it needs."""

    page: Path
    line: int
    language: str
    text: str
    needs: frozenset[str]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The lines to type, continued lines joined; the output of a console block is left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")] if self.language == "console" else lines
        return [line for line in typed if line.strip() and not line.startswith("#")]


def blocks_of(page: Path) -> Iterator[Block]:
    pattern = r"(?:^<!-- needs: (?P<needs>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    text = page.read_text()
    for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        needs = frozenset((found["needs"] or "").replace(",", " ").split())
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"] or "text", found["text"], needs)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CONSOLE = [block for block in BLOCKS if block.language in COMMAND_LANGUAGES]
PYTHON = [block for block in BLOCKS if block.language == "python"]
WALKED = {ROOT / "README.md", ROOT / "docs" / "quickstart.md"}  # tests/walk types these, where they are meant to be
RUN = sorted({block.page for block in CONSOLE if not block.needs} - WALKED)


def named(value: object) -> str:
    return value.where if isinstance(value, Block) else Path(str(value)).name


def test_each_block_is_of_a_known_kind_and_its_needs_are_known() -> None:
    assert len(CONSOLE) > 20
    assert len(PYTHON) >= 4
    for block in BLOCKS:
        assert block.language in COMMAND_LANGUAGES | OTHER_LANGUAGES, block.where
        assert block.needs <= NEEDS.keys(), f"{block.where}: {set(block.needs)}; known: {list(NEEDS)}"
    for page in PAGES:
        assert page.read_text().count("\n<!-- needs:") == sum(1 for b in BLOCKS if b.page == page and b.needs), page
        assert page.read_text().count("\n```") == 2 * sum(1 for b in BLOCKS if b.page == page), page


def check_adc_edge(words: list[str]) -> None:
    """Raise what click raises for an unknown command or option, a value out of range, or one that is missing."""
    group: click.Group = main
    while True:
        if words[0].startswith("-"):
            return  # adc-edge --help, --version
        assert group is not main or words[0] in COMMANDS, f"no command {words[0]}"
        command = group.get_command(click.Context(group), words[0])
        assert command is not None, f"no command {words[0]}"
        name, *words = words
        if not isinstance(command, click.Group):
            break
        group = command
    if "--resume" in words:  # reads the other options from a run that is not there
        known = {opt for param in command.params for opt in param.opts}
        assert {word for word in words if word.startswith("-")} <= known, words
    elif "--help" not in words:
        whole = click.Context(main, info_name="adc-edge", **main.context_settings)
        command.make_context(name, words, parent=whole)


def check_python(script: str, options: list[str]) -> None:
    """A script of ours knows each option."""
    texts = [(ROOT / script).read_text(), (ROOT / "benchmarks" / "harness.py").read_text()]
    known = set(re.findall(r'"(--?[a-z][a-z-]*)"', "".join(texts)))
    assert {word for word in options if word.startswith("-")} <= known, f"{script}: {options}"


def check_pip(words: list[str]) -> None:
    """Extras of this package exist; other packages are not looked up."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for word in words:
        asked = re.fullmatch(r"\.\[(.*)\]", word)
        assert asked is None or set(asked[1].split(",")) <= extras, word


def check(line: str) -> None:
    """A command as far as it can be checked without running it."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["adc-edge"]:
        check_adc_edge(words[1:])
    elif words[:1] in (["torchrun"], ["deploy/ranks.sh"]):
        check_ranks(words[1:])
    elif words[:1] == ["make"]:
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets, line
    elif words[:1] == ["python"] and words[1].endswith(".py"):
        check_python(words[1], words[2:])
    elif words[:2] == ["pip", "install"]:
        check_pip(words[2:])
    elif "pytest" in words:
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), line


@pytest.mark.parametrize("block", CONSOLE, ids=named)
def test_each_command_exists_with_its_options(block: Block) -> None:
    assert block.commands(), f"{block.where}: a console block without a line that begins with `$ `"
    for line in block.commands():
        check(line)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_command_within_a_line_exists(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`((?:python|pytest|make) [^`]+)`", prose):
        words = code.split()
        if words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), code
        else:
            check(code)


def typed_lines(page: Path) -> list[str]:
    """The commands of a page's blocks that need nothing."""
    return [line for block in CONSOLE if block.page == page and not block.needs for line in block.commands()]


class Place:
    """An empty directory in which a page's commands are typed one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        script = path / "bin" / "adc-edge"
        script.write_text(f"#!{sys.executable}\nfrom adc_edge.cli import main\nmain(prog_name='adc-edge')\n")
        script.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = server.getsockname()[1]
        self._trainer: subprocess.Popen[str] | None = None
        self._environment = {
            **os.environ,
            "PATH": f"{path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def type(self, line: str) -> None:
        """Run a command to its end, or a trainer until the next one starts."""
        line = self._smaller(line)
        if line.startswith("adc-edge merge"):
            self.end()  # as the page says: both runs have ended
        if not line.startswith("adc-edge trainer"):
            done = subprocess.run(
                ["bash", "-ec", line],
                cwd=self.path,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
            assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
            return
        self.end()
        self._trainer = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.path, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._trainer.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"$ {line}\ndoes not listen")

    def end(self) -> None:
        """End the trainer as Ctrl-C does, unless it ends by itself once its devices are done."""
        if self._trainer is not None:
            if "--devices" not in str(self._trainer.args):
                self._trainer.terminate()
            output, _ = self._trainer.communicate(timeout=60)
            assert self._trainer.returncode == 0, output
            self._trainer = None

    def _smaller(self, line: str) -> str:
        """The same with small numbers, without a download, on a free port."""
        line = " ".join(line.partition(" #")[0].split()).replace(" --pretrained", "")
        line = re.sub(r"(--steps|--eval-every) (\d+)", lambda found: f"{found[1]} {int(found[2]) // SMALLER}", line)
        line = re.sub(r"--epochs \d+", "--epochs 1", line)
        name = line.split()[1] if line.startswith("adc-edge ") else ""
        if name in MORE and MORE[name].split()[0] not in line:
            line += f" {MORE[name]}"
        return line.replace(":5700", f":{self._port}")


@pytest.fixture
def place(tmp_path: Path, bundle_dir: Path, page: Path) -> Iterator[Place]:
    """With some photos, and a bundle in out/ unless the page makes one."""
    if not any("-o out/" in line for line in typed_lines(page)):
        shutil.copytree(bundle_dir, tmp_path / "out")
    for number in range(80):
        file = tmp_path / "photos" / f"class{number % 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)).save(file)
    place = Place(tmp_path)
    yield place
    place.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_pages_commands_run_in_their_order(page: Path, place: Place) -> None:
    for line in typed_lines(page):
        place.type(line)


def with_processes(block: Block) -> bool:
    return "subprocess" in block.text


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.slow) if with_processes(block) else block
        for block in PYTHON
        if not block.needs
    ],
    ids=named,
)
def test_a_python_block_runs(block: Block, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert block.text.count("\n") <= 20 or block.page.name != "python.md", f"{block.where}: above 20 lines"
    shutil.copytree(bundle_dir, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if "adc_edge.cli" in block.text:  # a command sets signals, threads and logging of its process
        done = subprocess.run(
            [sys.executable, "-c", block.text], capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), {"__name__": "__main__"})


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme_or_a_page_that_it_links() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#:]+)", page.read_text())
        todo += [(page.parent / target).resolve() for target in targets]
    assert set(PAGES) <= reached


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 150
