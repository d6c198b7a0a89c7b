"""Every name of TensorRT and CUDA that edge_runtime uses, and every one that the fakes define, is in the real bindings.

TensorRT itself cannot be had without its libraries. Its bindings are a wheel of their own, which imports as soon as
three libraries of the right names export a few functions; the tests marked slow compile such stubs, fetch the wheels
with pip, and look at the names, the members of enums and the signatures in the docstrings. Nothing of it is kept.

What an object is follows from the name of its variable: see OBJECTS.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.edge_runtime.engines.tensorrt import fake_cuda, fake_tensorrt

ROOT = Path(__file__).parents[4]
SOURCES = sorted((ROOT / "edge_runtime" / "engines" / "tensorrt").glob("*.py"))
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")  # JetPack 6, JetPack 7.2, JetPack 7.2 with the SBSA package
CUDA_PACKAGES = ("cuda-python==12.6.2.post1", "cuda-bindings==13.4.4")  # JetPack 6 and 7
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "fault": "ParserError",
    "logger": "ILogger",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "prototype": "Weights",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "tensor": "ITensor",
    "timing_cache": "ITimingCache",
}
CUDA_OBJECTS = {"properties": "cudaDeviceProp"}
OURS = {"ILogger": {"errors"}}  # what our subclass adds


class Use(NamedTuple):
    """An attribute that a source takes of the module (owner "") or of an object of a class."""

    where: str
    owner: str
    name: str  # dotted, for members of enums and classes in classes
    arguments: tuple[int, tuple[str, ...]] | None  # positional and keywords, if it is called


class Member(NamedTuple):
    """A member of a class or of the module."""

    callable: bool
    signatures: list[list[tuple[str, bool]]]  # overloads; parameters with whether they may be left out; []: unknown


Surface = Mapping[str, Mapping[str, Member]]  # by class ("": the module itself)


def uses(source: str, where: str = "planted", module: str = "trt", objects: Mapping[str, str] = OBJECTS) -> list[Use]:
    """All of them in a source.

    Raises:
        AssertionError: an object that cannot be followed, since it has no name, or one outside the convention.
    """
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(parents[node], ast.Attribute):
            continue
        chain, root = _chain(node)
        place = f"{where}:{node.lineno}"
        if isinstance(root, ast.Call) and _owner(_chain(root.func)[0], module, objects) is not None:
            raise AssertionError(f"{place}: give {ast.unparse(root)} a name before .{chain[0]} is taken of it")
        owner = _owner(chain, module, objects)
        if owner is not None:
            parent = parents[node]
            called = isinstance(parent, ast.Call) and parent.func is node
            found.append(Use(place, *owner, _arguments(parent) if called and isinstance(parent, ast.Call) else None))
    _check_names(tree, where, module, objects)
    return found


def _chain(node: ast.AST) -> tuple[list[str], ast.AST]:
    """The dotted names, without ``self`` and leading underscores, and what they start from."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        names = names if node.id == "self" else [node.id, *names]
    return ([names[0].lstrip("_"), *names[1:]] if names else names), node


def _owner(chain: list[str], module: str, objects: Mapping[str, str]) -> tuple[str, str] | None:
    if len(chain) < 2:
        return None
    if chain[0] == module:
        return "", ".".join(chain[1:])
    return (objects[chain[0]], chain[1]) if chain[0] in objects else None


def _arguments(call: ast.Call) -> tuple[int, tuple[str, ...]]:
    return len(call.args), tuple(keyword.arg or "**" for keyword in call.keywords)


def _check_names(tree: ast.AST, where: str, module: str, objects: Mapping[str, str]) -> None:
    """Hold the result of each call to the naming convention, where anything of it is used."""
    stray = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        if _owner(_chain(node.value.func)[0], module, objects) is not None:
            stray |= {target.id for target in node.targets if isinstance(target, ast.Name)} - {*objects}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in stray:
            raise AssertionError(f"{where}:{node.lineno}: {node.value.id} is none of {', '.join(objects)}")


def wrong(use: Use, surface: Surface) -> str | None:
    """The fault in a use of these bindings, or None."""
    owner, _, name = f"{use.owner}.{use.name}".strip(".").rpartition(".")
    if name in OURS.get(use.owner, ()):
        return None
    member = surface.get(owner, {}).get(name)
    told = f"{use.where}: {owner + '.' if owner else ''}{name}"
    if member is None:
        return f"{told} does not exist"
    if use.arguments is None:
        return f"{told} is a method and is not called" if use.owner and member.callable else None
    if not member.callable:
        return f"{told} is no method and is called"
    if member.signatures and not any(_takes(signature, *use.arguments) for signature in member.signatures):
        return f"{told} takes {member.signatures}, is given {use.arguments}"
    return None


def _takes(signature: list[tuple[str, bool]], positional: int, keywords: tuple[str, ...]) -> bool:
    rest = signature[positional:]
    required = {name for name, optional in rest if not optional}
    return positional <= len(signature) and required <= {*keywords} <= {name for name, _ in rest}


PLANTED = {
    "trt.BuilderFlag.FP16": "config.set_flag(trt.BuilderFlag.FP16)",
    "Builder.platform_has_fast_fp16": "if builder.platform_has_fast_fp16: pass",
    "IBuilderConfig.int8_calibrator": "self._config.int8_calibrator = None",
    "trt.NoSuchThing": "trt.NoSuchThing()",
    "Refitter.set_named_weights": "refitter.set_named_weights('w', weights=1, place=2)",
    "ICudaEngine.num_io_tensors": "engine.num_io_tensors()",
    "ParserError.desc": "print(fault.desc)",
    "Builder.build_engine": "builder.build_engine(network, config)",
    "IExecutionContext.execute_async_v2": "self.context.execute_async_v2(bindings, stream)",
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "f(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))",
}


def test_the_collector_finds_what_is_used_and_how() -> None:
    source = """
def f(self, trt, builder):
    network = builder.create_network(1 << int(trt.A.B))
    self._context.set_input_shape(name, shape=x)
    if self.engine.refittable and trt.ILogger.Severity.ERROR:
        return other.thing
"""
    assert [use[1:] for use in sorted(uses(source), key=lambda use: use.where)] == [
        ("Builder", "create_network", (1, ())),
        ("", "A.B", None),
        ("IExecutionContext", "set_input_shape", (1, ("shape",))),
        ("ICudaEngine", "refittable", None),
        ("", "ILogger.Severity.ERROR", None),
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("config.get_timing_cache().serialize()", "give config.get_timing_cache"),
        ("layer = network.get_layer(0)\nlayer.name", "layer is none of"),
        ("made = trt.Runtime(logger)\nmade.x", "made is none of"),
    ],
)
def test_what_cannot_be_followed_is_an_error(source: str, words: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(words)):
        uses(source)


def test_planted_faults_are_seen_in_a_surface_like_the_fakes() -> None:
    surface = fake_surface()
    for name, source in PLANTED.items():
        faults = [fault for use in uses(source) if (fault := wrong(use, surface))]
        assert any(name.removeprefix("trt.") in fault for fault in faults), name


def test_the_fake_has_all_that_is_used() -> None:
    """So that nothing is used that was never run."""
    found = [use for path in SOURCES for use in uses(path.read_text(), path.name)]
    assert len(found) > 60
    assert {use.owner for use in found} >= {*OBJECTS.values()} - {"IHostMemory"}
    assert [fault for use in found if (fault := wrong(use, fake_surface()))] == []


def fake_surface() -> dict[str, dict[str, Member]]:
    """The definitions of the fake, in the terms of the real bindings."""
    names = {name: getattr(fake_tensorrt, name) for name in fake_tensorrt.PUBLIC} | {"__version__": ""}
    surface = {"": {name: _fake_member(value) for name, value in names.items()}}
    for name, value in names.items():
        if isinstance(value, type):
            surface |= _fake_class(name, value)
    return surface


def _fake_class(name: str, cls: type) -> dict[str, dict[str, Member]]:
    members: dict[str, Any] = {}
    for base in reversed([c for c in cls.__mro__ if c.__module__ == fake_tensorrt.__name__]):
        members |= {n: v for n, v in vars(base).items() if not n.startswith("_")}
    surface = {name: {n: _fake_member(v) for n, v in members.items()}}
    for n, v in members.items():
        if isinstance(v, type):
            surface |= _fake_class(f"{name}.{n}", v)
    return surface


def _fake_member(value: Any) -> Member:
    if isinstance(value, type):
        own = None if issubclass(value, (bytes, enum.Enum)) else value.__init__
        return Member(True, [] if own is None else [_parameters(own)])
    if inspect.isfunction(value):
        return Member(True, [_parameters(value)])
    return Member(False, [])


def _parameters(function: Any) -> list[tuple[str, bool]]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.default is not p.empty) for p in found if p.name != "self"]


# What follows needs pip and, for TensorRT, a C compiler.

_STUB = "\n".join(
    f"void* {name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "getNvOnnxParserVersion",
        "initLibNvInferPlugins",
    )
)
_DUMP = """
import importlib, inspect, json, sys
sys.path.insert(0, sys.argv[1])
module = importlib.import_module(sys.argv[2])

def member(value):
    kind = value.__init__ if isinstance(value, type) else value
    method = callable(value)
    doc = getattr(kind, "__doc__", "") or ""
    if inspect.isfunction(value):
        doc = value.__name__ + str(inspect.signature(value)) + " -> None"
    return [method, doc]

surface = {}
def visit(owner, thing):
    surface[owner] = {}
    for name in dir(thing):
        value = getattr(thing, name)
        surface[owner][name] = member(value)
        if isinstance(value, type) and not name.startswith("_") and value is not type:
            path = f"{owner}.{name}".strip(".")
            if path.count(".") < 2 and path not in surface:
                visit(path, value)
visit("", module)
print(json.dumps(surface))
"""


def install(requirement: str, target: Path) -> None:
    """Put a package without what it needs into a directory, or skip the test."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    try:
        subprocess.run(
            [*pip, "--target", str(target), requirement], check=True, capture_output=True, text=True, timeout=200
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot get {requirement} here: {error.stderr.strip().splitlines()[-1]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip cannot get {requirement} within 200 s")


def dumped(directory: Path, module: str, libraries: Path | None = None) -> dict[str, dict[str, Member]]:
    """The surface of a module, imported in a process of its own."""
    paths = [str(libraries or directory), os.environ.get("LD_LIBRARY_PATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", _DUMP, str(directory), module],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(paths)},
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return {
        owner: {name: Member(method, _signatures(doc)) for name, (method, doc) in members.items()}
        for owner, members in json.loads(result.stdout).items()
    }


def _signatures(doc: str) -> list[list[tuple[str, bool]]]:
    """Signatures in a docstring of pybind11 (``f(self: T, a: int = 0) -> T``) or Cython (``f(a, size_t b)``)."""
    found = []
    for line in doc.splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$", line.strip())
        if match and not match[1].startswith("*args"):
            found.append([p for p in map(_parameter, _split(match[1])) if p[0] not in ("self", "")])
        elif found or line.strip():
            continue
    return found


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _parameter(text: str) -> tuple[str, bool]:
    name = re.split(r"[:=]", text.strip())[0].strip()
    return (name.split()[-1] if name else "", "=" in text)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries that export what the bindings look for, and do nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here, for the stubs that stand for TensorRT's libraries")
    path = tmp_path_factory.mktemp("stubs")
    (path / "stub.c").write_text(_STUB)
    for library in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        for major in {version.partition(".")[0] for version in VERSIONS}:
            name = f"{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(path / name), "stub.c"]
            subprocess.run(command, check=True, cwd=path, timeout=100)
    return path


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: Any, stubs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Surface]]:
    """A version of TensorRT, and what its bindings have."""
    directory = tmp_path_factory.mktemp("bindings")
    install(f"tensorrt-cu12-bindings=={request.param}", directory)
    yield request.param, dumped(directory, "tensorrt_bindings", stubs)
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=CUDA_PACKAGES)
def cudart(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surface]:
    directory = tmp_path_factory.mktemp("cuda")
    install(request.param, directory)
    yield dumped(directory, "cuda.bindings.runtime")
    shutil.rmtree(directory)


@pytest.mark.slow
def test_every_name_of_tensorrt_that_is_used_exists(bindings: tuple[str, Surface]) -> None:
    found = [use for path in SOURCES for use in uses(path.read_text(), path.name)]
    assert [fault for use in found if (fault := wrong(use, bindings[1]))] == []
    for owner, name in {(use.owner, use.name) for use in found if use.owner and use.arguments}:
        assert bindings[1][owner][name].signatures, f"{owner}.{name}: its docstring was not understood"


@pytest.mark.slow
def test_planted_uses_are_caught(bindings: tuple[str, Surface]) -> None:
    version, surface = bindings
    removed = {  # by 11.0
        "trt.BuilderFlag.FP16",
        "Builder.platform_has_fast_fp16",
        "IBuilderConfig.int8_calibrator",
        "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    }
    for name, source in PLANTED.items():
        faults = [fault for use in uses(source) if (fault := wrong(use, surface))]
        expected = name not in removed or version.startswith("11.")
        assert any(name.removeprefix("trt.") in fault for fault in faults) == expected, (name, faults)


@pytest.mark.slow
def test_the_fake_defines_nothing_that_tensorrt_lacks(bindings: tuple[str, Surface]) -> None:
    for owner, members in fake_surface().items():
        for name, member in members.items():
            real = bindings[1].get(owner, {}).get(name)
            assert real is not None, f"{owner}.{name} does not exist in {bindings[0]}"
            if owner and not isinstance(getattr(fake_tensorrt, owner.partition(".")[0], None), enum.EnumMeta):
                assert real.callable == member.callable, f"{owner}.{name}"
            if member.signatures and real.signatures:
                ours = [parameter for parameter, _ in member.signatures[0]]
                theirs = [[parameter for parameter, _ in signature] for signature in real.signatures]
                assert any(ours == each[: len(ours)] for each in theirs), f"{owner}.{name}: {ours}, not {theirs}"


@pytest.mark.slow
def test_every_name_of_cuda_that_is_used_exists_also_in_the_fake(cudart: Surface) -> None:
    source = (ROOT / "edge_runtime" / "engines" / "tensorrt" / "cuda.py").read_text()
    found = uses(source, "cuda.py", "cudart", CUDA_OBJECTS)
    assert len(found) > 12
    assert [fault for use in found if (fault := wrong(use, cudart))] == []
    fake = {name for name in vars(fake_cuda.Cudart) if not name.startswith("_")}
    assert {use.name.partition(".")[0] for use in found if not use.owner} <= fake
    assert fake <= {*cudart[""]}
    for name in fake:
        real, ours = cudart[""][name], getattr(fake_cuda.Cudart, name)
        if inspect.isfunction(ours):
            assert [[p for p, _ in _parameters(ours)]] == [[p for p, _ in s] for s in real.signatures[:1]], name
    for cls in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind):
        assert {member.name for member in cls} <= {*cudart[cls.__name__]}
