"""Tests of the package as installed: one version, the right files, by pip and by colcon."""

from __future__ import annotations

import ast
import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from vla_align_ros.extras import EXTRA_OF_MODULE, install_hint

ROOT = Path(__file__).resolve().parent.parent
NAME = "vla_align_ros"
PACKAGE_XML = ElementTree.parse(ROOT / "package.xml").getroot()
VERSION = PACKAGE_XML.findtext("version") or ""
EXECUTABLES = {"policy_node", "sim_node", "operator_node", "watchdog_node", "vla-align", "export"}
EXECUTABLES |= {"say", "operator_console", "stop_arm", "joystick_stop"}
LEFT_OUT = [
    ".*",
    "__pycache__",
    "build",
    "install",
    "log",
    "runs",
    "data",
    "demo_out",
    "bench_out",
    "*.egg-info",
]
DEPENDS = {item.text for item in PACKAGE_XML.iter("exec_depend")}
# Import name -> the distribution that brings it, where they differ.
DISTRIBUTION = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "sklearn": "scikit-learn",
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings",
    "yaml": "PyYAML",
}


def copy_sources(target: Path) -> Path:
    """Copy what an installation reads, so that no build writes into the checkout."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        left_out = LEFT_OUT if Path(folder) == ROOT else ["__pycache__"]
        return set(shutil.ignore_patterns(*left_out)(folder, names))

    shutil.copytree(ROOT, target, ignore=ignore)
    return target


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_sources(folder / "src")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    run(sys.executable, "-m", "pip", "wheel", *options, str(sources), cwd=folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    text = wheel.read(f"{NAME}-{VERSION}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


def requirements(metadata: email.message.Message, extra: str) -> set[str]:
    """Return the names of the distributions that the base install ("") or an extra asks for."""
    found = set()
    for line in metadata.get_all("Requires-Dist", []):
        name = re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0]
        marked = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (marked.group(1) if marked else "") == extra:
            found.add(name.lower().replace("_", "-"))
    return found


def source_imports(folder: str) -> set[str]:
    """Return the top-level names that a folder's Python files import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {NAME, "training"}


def test_the_version_stands_in_package_xml_alone(metadata: email.message.Message) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert metadata["Version"] == VERSION
    assert version(NAME) == VERSION, "run `pip install -e .` again"
    for path in [ROOT / "setup.py", ROOT / "setup.cfg", *(ROOT / NAME).rglob("*.py")]:
        text = path.read_text()
        assert VERSION not in re.findall(r"\d+\.\d+\.\d+", text), path


def test_package_xml_is_a_valid_format_3_manifest() -> None:
    catkin_pkg = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not installed")
    warnings: list[str] = []
    package = catkin_pkg.parse_package(str(ROOT), warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings
    assert package.package_format == 3
    assert package.get_build_type() == "ament_python"


def test_the_license_is_the_same_everywhere(
    metadata: email.message.Message, wheel: zipfile.ZipFile
) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PACKAGE_XML.findtext("license") == "Apache-2.0"
    assert "Apache-2.0" in (metadata["License-Expression"], metadata["License"])
    assert f"{NAME}-{VERSION}.dist-info/licenses/LICENSE" in wheel.namelist()


def test_every_ros_package_that_is_imported_is_declared(metadata: email.message.Message) -> None:
    imported = source_imports(f"{NAME}/ros") | source_imports("launch")
    ros = {name for name in imported if EXTRA_OF_MODULE.get(name, "ros") == "ros"}
    assert "rclpy" in ros
    assert ros <= DEPENDS, f"not in package.xml: {sorted(ros - DEPENDS)}"
    wheels = {name.removeprefix("ros-").replace("-", "_") for name in requirements(metadata, "ros")}
    assert wheels - {"rmw_fastrtps_cpp"} <= DEPENDS
    no_wheel = {"launch", "launch_ros", "control_msgs"}
    assert ros - no_wheel <= wheels, f"not in [ros]: {sorted(ros - no_wheel - wheels)}"


def test_every_library_that_is_imported_is_asked_for(metadata: email.message.Message) -> None:
    optional = {"control_msgs", "launch", "launch_ros", "tensorrt"}
    for module in sorted((source_imports(NAME) | source_imports("training")) - optional):
        assert module in EXTRA_OF_MODULE, f"{module} is in no extra of vla_align_ros/extras.py"
        name = DISTRIBUTION.get(module, module).lower().replace("_", "-")
        extra = EXTRA_OF_MODULE[module]
        asked = requirements(metadata, extra)
        assert {name, f"ros-{name}"} & asked, f"setup.py's [{extra}] does not bring {module}"


def test_the_robot_needs_neither_torch_nor_mujoco(metadata: email.message.Message) -> None:
    base = {"numpy", "onnxruntime", "pillow", "pyyaml", "tokenizers"}
    assert requirements(metadata, "") == base
    extras = {"train", "export", "sim", "ros", "trt-rtx", "dev"}
    assert extras <= set(metadata.get_all("Provides-Extra", []))


def test_a_missing_module_is_answered_with_the_extra_that_brings_it() -> None:
    assert "'.[train]'" in str(install_hint("torch.nn"))
    assert "source ROS 2" in str(install_hint("rclpy"))
    assert "[" not in str(install_hint("numpy"))
    assert install_hint("unknown_module") is None


def test_the_wheel_holds_every_module_and_every_shared_file(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    for top in (NAME, "training"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in held
    share = f"{NAME}-{VERSION}.data/data/share"
    assert f"{share}/ament_index/resource_index/packages/{NAME}" in held
    assert f"{share}/{NAME}/package.xml" in held
    for top in ("launch", "config", "bundles/tabletop"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{share}/{NAME}/{path.relative_to(ROOT).as_posix()}" in held
    assert not [name for name in held if name.startswith(("test", "docs"))]


def test_every_entry_point_leads_to_a_module(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"{NAME}-{VERSION}.dist-info/entry_points.txt").decode()
    targets = dict(re.findall(r"^([\w-]+) = ([\w.:]+)$", text, flags=re.MULTILINE))
    assert not EXECUTABLES - set(targets)
    for name, target in targets.items():
        module, _, function = target.partition(":")
        spec = find_spec(module)
        assert spec is not None and spec.origin, f"{name}: no module {module}"
        body = ast.parse(Path(spec.origin).read_text()).body
        defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        wanted = {function} if function else {"add_arguments", "run"}
        assert wanted <= defined, f"{name}: {module} does not define {wanted - defined}"


@pytest.mark.parametrize("mode", [[], ["--symlink-install"]], ids=["copies", "symlinks"])
def test_colcon_builds_a_workspace_that_runs(mode: list[str], tmp_path: Path) -> None:
    colcon = Path(sysconfig.get_path("scripts")) / "colcon"
    if not colcon.exists():
        pytest.skip("colcon is not installed in this environment")
    copy_sources(tmp_path / "src" / NAME)
    run(colcon, "build", *mode, "--event-handlers", "console_direct+", cwd=tmp_path)
    prefix = tmp_path / "install" / NAME
    assert {path.name for path in (prefix / "lib" / NAME).iterdir()} == EXECUTABLES
    assert (prefix / "share/ament_index/resource_index/packages" / NAME).is_file()
    for top in ("launch", "config"):
        for path in (ROOT / top).rglob("*.*"):
            if "__pycache__" in path.parts:  # left by tests that ran here before
                continue
            assert (prefix / "share" / NAME / path.relative_to(ROOT)).is_file()
    shell = f". install/setup.bash && cd / && {prefix}/lib/{NAME}/vla-align --help && "
    shell += f"{sys.executable} -c 'import {NAME}, training; print({NAME}.__file__)'"
    answer = run("bash", "-c", shell, cwd=tmp_path)
    assert "doctor" in answer
    assert answer.splitlines()[-1].startswith(str(tmp_path)), "not the workspace's own package"
