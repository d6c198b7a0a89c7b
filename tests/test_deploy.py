"""Images, compose file and systemd unit: what can be held without Docker and without a board.

The slow tests run the very `pip install` lines of the Dockerfiles, on what these copy, in clean environments.
"""

from __future__ import annotations

import configparser
import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml  # type: ignore[import-untyped]

from adc_edge.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
JETSON, TRAINER = IMAGES = ("Dockerfile.jetson", "Dockerfile.trainer")
UNIT, UNIT_ENV = "deploy/adc-edge-serve.service", "deploy/adc-edge-serve.env"
DEVICE_MB = 250  # of packages on a device with a frozen trunk


class Instruction(NamedTuple):
    """One of a Dockerfile, continued lines joined, without comments."""

    name: str
    text: str


def instructions(image: str) -> list[Instruction]:
    lines = [line for line in (ROOT / image).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def only(image: str, name: str) -> str:
    (text,) = [each.text for each in instructions(image) if each.name == name]
    return text


def arguments(image: str) -> dict[str, str]:
    """Defaults of the build arguments."""
    pairs = (each.text.partition("=") for each in instructions(image) if each.name == "ARG")
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def interpolated(text: str) -> str:
    """Compose's variables with their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(interpolated((ROOT / "compose.yaml").read_text()))
    return loaded


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(re.sub(r"\\\n\s*", "", (ROOT / UNIT).read_text()))
    return parser


def unit_environment() -> dict[str, str]:
    lines = [line for line in (ROOT / UNIT_ENV).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The adc-edge commands in the deployment files: file, and the words after the name."""
    for image in IMAGES:
        assert json.loads(only(image, "ENTRYPOINT")) == ["adc-edge"]
        yield f"{image} CMD", json.loads(only(image, "CMD"))
        health = json.loads(only(image, "HEALTHCHECK").partition("CMD ")[2])
        if health[0] == "adc-edge":
            yield f"{image} HEALTHCHECK", health[1:]
    for name, service in compose()["services"].items():
        yield f"compose {name}", shlex.split(service["command"])
    line = unit()["Service"]["ExecStart"].replace("%S", "/var/lib")
    for name, value in unit_environment().items():
        line = line.replace("${" + name + "}", shlex.quote(value)).replace(f"${name}", value)
    program, *words = shlex.split(line)
    assert program.endswith("/adc-edge")
    yield UNIT, words
    for typed in re.findall(r"^# .*bin/adc-edge (.*)$", (ROOT / UNIT).read_text(), re.MULTILINE):
        yield f"{UNIT} comment", typed.split()


@pytest.mark.parametrize(("where", "words"), list(commands()), ids=lambda each: each if isinstance(each, str) else "")
def test_each_command_is_one_that_adc_edge_takes(where: str, words: list[str]) -> None:
    group: click.Group = main
    while True:
        name, *words = words
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"{where}: adc-edge {name}"
        if not isinstance(command, click.Group):
            break
        group = command
    assert "$" not in " ".join(words), where
    if "--help" not in words:
        command.make_context(name, words)  # raises for an unknown option, a bad value or a missing one


@pytest.mark.parametrize(
    "file", [*IMAGES, "compose.yaml", "deploy/compose/compose.yaml", UNIT, UNIT_ENV, "deploy/arm64.sh"]
)
def test_commands_that_comments_name_exist(file: str) -> None:
    assert set(re.findall(r"`adc-edge ([a-z]+)", (ROOT / file).read_text())) <= COMMANDS.keys()


def tool(name: str) -> str:
    """A linter beside this Python or in the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_has_no_complaint(image: str) -> None:
    done = run(tool("hadolint"), "--no-color", ROOT / image)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_checks_its_health_and_hides_no_index(image: str) -> None:
    names = [each.name for each in instructions(image)]
    users = [each.text for each in instructions(image) if each.name == "USER"]
    assert users == ["adc-edge"]
    assert "RUN" not in names[names.index("USER") :]  # what root does comes before
    assert names.count("HEALTHCHECK") == 1
    everything = "\n".join(each.text for each in instructions(image))
    assert not re.search(r"https?://|index-url|find-links|\.whl", everything)  # indexes vanish: build arguments
    assert "/runs" in json.loads(only(image, "VOLUME"))
    for argument in arguments(image):
        assert re.search(rf"\$\{{{argument}\b", everything), f"{argument} is not used"


def test_the_defaults_are_jetpack_6() -> None:
    defaults = arguments(JETSON)
    assert defaults["BASE"] == "nvcr.io/nvidia/l4t-jetpack:r36.4.0"
    assert defaults["NUMPY"].endswith("<2")
    assert defaults["CUDA_PYTHON"] == "cuda-bindings>=12.6,<13"
    assert defaults["EXTRAS"] == ""
    assert jetpack_7()["BASE"] == "nvcr.io/nvidia/pytorch:25.10-py3"
    assert arguments(TRAINER)["BASE"] == "python:3.11-slim"


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_exists_goes_past_the_ignore_file_and_is_the_whole_package(image: str) -> None:
    sources = [word for each in instructions(image) if each.name == "COPY" for word in each.text.split()[:-1]]
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignore[0] == "*"
    admitted = {line[1:] for line in ignore if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in admitted, f".dockerignore leaves out {source}"
    assert not [name for name in admitted if fnmatch.fnmatch(name, "*key*") or not (ROOT / name).exists()]
    pyproject = (ROOT / "pyproject.toml").read_text()
    parts = re.findall(r'^"adc_edge\.\w+" = "(\w+)"$', pyproject, re.MULTILINE)
    assert {"adc_edge", *parts, "pyproject.toml", *re.findall(r'^readme = "(.*)"$', pyproject, re.MULTILINE)} <= {
        *sources
    }


def test_the_trainer_is_checked_where_it_listens() -> None:
    bind = json.loads(only(TRAINER, "CMD"))
    port = int(bind[bind.index("--bind") + 1].rpartition(":")[2])
    assert only(TRAINER, "EXPOSE") == str(port)
    health = json.loads(only(TRAINER, "HEALTHCHECK").partition("CMD ")[2])
    assert f":{port:04X} " in health[2]
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp")
    with socket.create_server(("0.0.0.0", 0)) as server:
        mine = [word.replace(f"{port:04X}", f"{server.getsockname()[1]:04X}") for word in health]
        assert run(*mine).returncode == 0
    assert run(*mine).returncode == 1


def test_compose_keeps_its_promises() -> None:
    text = (ROOT / "compose.yaml").read_text()
    variables = set(re.findall(r"\$\{(\w+)", text))
    assert variables == set(
        re.findall(r"\$\{(\w+):-", text)
    )  # each has a default: either profile works without the other's
    services = compose()["services"]
    assert services.keys() == {"trainer", "device"}
    for name, service in services.items():
        assert service["profiles"] == [name]
        assert service["build"]["dockerfile"] in IMAGES
        assert service["build"]["args"].keys() <= arguments(service["build"]["dockerfile"]).keys()
        assert "privileged" not in service
        assert service["cap_drop"] == ["ALL"]
        assert int(service["stop_grace_period"].removesuffix("s")) >= 10
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert all(mount.get("read_only") for target, mount in mounts.items() if target != "/runs")
        assert {"/bundle", "/keys", "/runs"} <= mounts.keys()
        used = {word for word in shlex.split(service["command"]) if word.startswith("/")}
        assert {"/" + word.split("/")[1] for word in used} <= mounts.keys()
    assert services["device"]["runtime"] == "nvidia"
    assert services["device"]["ipc"] == "host"
    assert services["trainer"]["ports"] == ["5700:5700"]


def test_the_unit_keeps_its_promises() -> None:
    service = unit()["Service"]
    assert service["User"] not in ("", "root", "0")
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"  # wrong use
    assert unit()["Unit"].keys() >= {"StartLimitBurst", "StartLimitIntervalSec"}
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"].removesuffix("s")) >= 10
    assert service["EnvironmentFile"] == "/etc/adc-edge/serve.env"
    assert f"--run %S/{service['StateDirectory']}/" in service["ExecStart"]
    assert service["NoNewPrivileges"] == "yes"
    used = set(re.findall(r"\$\{?(\w+)", service["ExecStart"]))
    assert used == unit_environment().keys()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (ROOT / UNIT).read_text().replace("/opt/adc-edge/bin/adc-edge", sys.executable)  # it must be there
    (tmp_path / "adc-edge-serve.service").write_text(text)
    done = run(tool("systemd-analyze"), "verify", "--man=no", tmp_path / "adc-edge-serve.service")
    assert done.returncode == 0, done.stderr
    assert "adc-edge-serve" not in done.stderr


def test_the_arm64_script_is_well_formed_and_names_what_it_lacks() -> None:
    script = ROOT / "deploy" / "arm64.sh"
    assert run("bash", "-n", script).returncode == 0
    for words, message in (([], "usage:"), (["/no/python"], "make install"), ([sys.executable, "--frozen"], "usage:")):
        done = run(script, *words)
        assert done.returncode == 1
        assert message in done.stderr


def test_shellcheck_has_no_complaint() -> None:
    done = run(tool("shellcheck"), ROOT / "deploy" / "arm64.sh", ROOT / ".ci" / "run")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("apt_get", "end"),
    [
        (None, "missing: chromium prometheus promtool"),
        ("exit 100", "missing: chromium prometheus promtool"),
        ("cp {bin}/true {bin}/chromium", "missing: prometheus promtool"),
        (
            "for name in chromium prometheus promtool; do cp {bin}/true {bin}/$name; done",
            "made: lint\nmade: test\nmade: slow",
        ),
    ],
    ids=["without apt-get", "apt-get fails", "apt-get lacks some", "apt-get works"],
)
def test_ci_installs_what_browser_and_prometheus_tests_need_or_fails_with_one_line(
    apt_get: str | None, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "dirname", "cp", "true"):
        (path / name).symlink_to(str(shutil.which(name)))
    scripts = {"make": "echo made: $1"} | ({} if apt_get is None else {"apt-get": apt_get.format(bin=path)})
    for name, text in scripts.items():
        (path / name).write_text(f"#!{path}/bash\n{text}\n")
        (path / name).chmod(0o755)
    done = subprocess.run(
        [path / "bash", ROOT / ".ci" / "run"], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == end.startswith("made")
    if done.returncode:
        (line,) = done.stderr.splitlines()
        assert end in line
        assert "install the Debian packages chromium and prometheus" in line
    else:
        assert done.stdout.strip() == end


# In clean environments, from here on.


def jetpack_7() -> dict[str, str]:
    """The build arguments that the head of Dockerfile.jetson gives for it."""
    head = re.sub(r" \\\n#", "", (ROOT / JETSON).read_text().partition("ARG")[0])
    (line,) = [line for line in head.splitlines() if line.startswith("#   JetPack 7")]
    words = shlex.split(line)
    return dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--build-arg")


def installs(image: str, **given: str) -> tuple[list[str], dict[str, str]]:
    """The RUN lines that call pip, and the environment that the build arguments make."""
    lines = [each.text for each in instructions(image) if each.name == "RUN" and "pip install" in each.text]
    return lines, {**os.environ, **arguments(image), **given}


def context(image: str, place: Path) -> Path:
    """The files that the image copies, and no others."""
    for each in instructions(image):
        if each.name == "COPY":
            *sources, target = each.text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place / target, symlinks=True)
                else:
                    place.mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, place)
    return place


def python_of(version: str) -> str:
    """Such a Python if there is one, else this one."""
    found = shutil.which(f"python{version}")
    return found if found and run(found, "-c", "").returncode == 0 else sys.executable


def megabytes(place: Path) -> float:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_install_lines_of_the_jetson_image_make_a_device(tmp_path: Path) -> None:
    if sys.version_info >= (3, 13) and python_of("3.10") == sys.executable:
        pytest.skip("numpy 1 has no wheels for this Python")
    lines, environment = installs(JETSON)
    source, made = context(JETSON, tmp_path / "src"), tmp_path / "venv"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(python_of("3.10"))
    environment["PATH"] = f"{made / 'bin'}:{tmp_path / 'bin'}:{environment['PATH']}"
    for line in lines:  # clean: without this machine's own packages
        line = line.replace("/opt/adc-edge", str(made)).replace(" --system-site-packages", "")
        done = run("sh", "-c", line, cwd=source, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    listed = run(made / "bin" / "pip", "list", "--format", "json").stdout
    versions = {each["name"].lower(): each["version"] for each in json.loads(listed)}
    assert not versions.keys() & {"torch", "timm", "onnx"}
    assert versions["numpy"].startswith("1.26.")
    assert versions["onnxruntime"].startswith(("1.20", "1.21", "1.22", "1.23"))
    for words in (["--version"], ["serve", "--help"], ["doctor", "--health"]):
        done = run(made / "bin" / "adc-edge", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    print(f"{JETSON}: {megabytes(made):.0f} MB, {json.dumps(versions)}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_install_lines_of_the_trainer_image_resolve_to_the_pinned_versions(tmp_path: Path) -> None:
    lines, environment = installs(TRAINER)  # resolved, not installed: that would be gigabytes
    source, made = context(TRAINER, tmp_path / "src"), tmp_path / "venv"
    environment["PATH"] = f"{made / 'bin'}:{environment['PATH']}"
    for line in lines:
        line = line.replace("/opt/adc-edge", str(made)).replace(" --system-site-packages", "")
        line = line.replace("pip install", f"pip install --quiet --dry-run --report {tmp_path / 'resolved.json'}")
        done = run("sh", "-c", line, cwd=source, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    installed = json.loads((tmp_path / "resolved.json").read_text())["install"]
    versions = {each["metadata"]["name"]: each["metadata"]["version"] for each in installed}
    assert {"adc-edge", "torch", "torchvision", "timm"} <= versions.keys()
    pins = re.findall(r"^(torch|torchvision|timm)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if sys.version_info[:2] == (3, 11):  # what the pins are for
        assert {name: versions[name].partition("+")[0] for name, _ in pins} == dict(pins)


def recorded(line: str, environment: Mapping[str, str], place: Path) -> list[str]:
    """The words that a RUN line hands to pip, after the shell has read it."""
    place.mkdir()
    for name, text in {"pip": f'printf "%s\\n" "$@" >{place}/words', "python3": ":"}.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    subprocess.run(["sh", "-c", line], env={**environment, "PATH": f"{place}:{environment['PATH']}"}, check=True)
    command, *words = (place / "words").read_text().splitlines()
    assert command == "install"
    return [word for word in words if not word.startswith("-")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("python", "glibc"), [("3.10", 35), ("3.12", 39)], ids=["JetPack 6", "JetPack 7"])
def test_wheels_of_all_that_the_jetson_image_installs_exist_for_arm64(python: str, glibc: int, tmp_path: Path) -> None:
    lines, environment = installs(JETSON, EXTRAS="train", **({} if python == "3.10" else jetpack_7()))
    wanted = [word for i, line in enumerate(lines) for word in recorded(line, environment, tmp_path / f"bin{i}")]
    (torch,) = [word for word in wanted if word.startswith("torch")]
    assert wanted.pop() == ".[train]"
    wanted.remove(torch)
    pip = [python_of(python), "-m", "pip"]
    done = run(*pip, "wheel", "--quiet", "--no-deps", "-w", tmp_path, ".", cwd=context(JETSON, tmp_path / "src"))
    assert done.returncode == 0, done.stderr
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1)] + ["manylinux2014_aarch64"]
    arm64: list[str | Path] = [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        "--target",
        tmp_path / "site",
    ]
    arm64 += [f"--platform={tag}" for tag in tags]
    (wheel,) = tmp_path.glob("*.whl")
    # Without bytecode: its size would be that of the Python at hand, a tenth more from 3.11 than from 3.10.
    done = run(*pip, "install", "--quiet", "--no-compile", *arm64, wheel, *wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    # torch alone: pip reads the markers of its CUDA packages for the machine it runs on
    done = run(*pip, "install", "--quiet", "--dry-run", "--no-deps", *arm64, torch)
    assert done.returncode == 0, done.stderr[-3000:]
    listed = sorted(path.name.removesuffix(".dist-info") for path in (tmp_path / "site").glob("*.dist-info"))
    size = megabytes(tmp_path / "site")
    print(f"ARM64, Python {python}: {size:.0f} MB without bytecode, {', '.join(listed)}")
    assert size <= DEVICE_MB
