"""Holds the arrows of the architecture: who may import whom, and what may load when."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A unit -> the units it may import. The most specific entry wins; a unit may import itself.
ALLOWED: dict[str, set[str]] = {
    "vla_align_ros": set(),
    "vla_align_ros.errors": set(),
    "vla_align_ros.extras": set(),
    "vla_align_ros.share": {"errors"},
    "vla_align_ros.flags": {"errors"},
    "vla_align_ros.pages": {"errors"},
    "vla_align_ros.machine": set(),
    "vla_align_ros.verbs": set(),
    "vla_align_ros.contract": {"errors"},
    "vla_align_ros.inference": {"errors", "machine", "contract", "extras"},
    "vla_align_ros.runtime": {"errors", "contract", "inference"},
    "vla_align_ros.sim": {"errors", "contract"},
    "vla_align_ros.ros": {"errors", "extras", "share", "contract", "inference", "runtime", "sim"},
    "vla_align_ros.demo": {
        *("errors", "machine", "share", "contract", "inference", "runtime", "sim", "ros"),
    },
    "vla_align_ros.bench": {
        *("errors", "share", "pages", "contract", "inference", "runtime", "sim", "ros", "demo"),
    },
    "vla_align_ros.commands": {
        *("errors", "extras", "share", "contract", "inference", "runtime", "sim"),
    },
    "vla_align_ros.cli": {"errors", "extras"},
    "training": {"errors", "machine", "extras", "contract"},
    "training.data": {"errors", "contract", "runtime", "sim"},  # DAgger flies the policy
    "training.closed_loop": {"errors", "contract", "runtime", "sim", "demo"},
    "training.benchmark": {"errors", "pages", "contract", "inference", "runtime", "sim"},
    "training.export": {"errors", "contract", "inference", "runtime"},
    "training.export.behaviour": {"contract", "errors", "runtime", "sim"},  # closed loop
    "training.sight": {"errors", "extras", "contract", "runtime"},  # Wilson's interval
    "training.diagnose": {"errors", "extras", "contract", "runtime"},  # the same
    "training.strange_scenes": {"errors", "contract", "runtime", "sim"},
    "training.evaluate": {"errors", "contract", "inference", "runtime", "sim"},
    "training.commands": {
        *("errors", "share", "verbs", "contract", "inference", "runtime", "sim", "demo", "bench"),
    },
}

# A library -> the only places in vla_align_ros that may import it.
LAZY: dict[str, tuple[str, ...]] = {
    "cuda": ("vla_align_ros.inference.tensorrt",),
    "mani_skill": ("vla_align_ros.sim.put_on_plate",),
    "mujoco": ("vla_align_ros.sim",),
    "onnxruntime": ("vla_align_ros.inference.onnx", "vla_align_ros.commands.doctor"),
    "sapien": ("vla_align_ros.sim.put_on_plate",),
    "openvino": ("vla_align_ros.inference.openvino",),
    "tensorrt": ("vla_align_ros.inference.tensorrt",),
    "tensorrt_rtx": ("vla_align_ros.inference.tensorrt",),
    "tokenizers": ("vla_align_ros.contract.prompt",),
    "torch": ("vla_align_ros.inference.torch", "vla_align_ros.sim.put_on_plate"),
    "transformers": (),
    "trossen_arm_sim": ("vla_align_ros.sim",),
}
# Modules that exist to use a library, and are themselves imported lazily, may do so at the top.
EAGER = {"vla_align_ros.sim", "vla_align_ros.inference.tensorrt"}
EAGER |= {f"vla_align_ros.inference.{name}" for name in ("onnx", "openvino", "torch")}
ROS = {"launch", "launch_ros", "lifecycle_msgs", "rcl_interfaces", "rclpy", "sensor_msgs"}
ROS |= {"builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "std_msgs", "std_srvs"}
ROS |= {"action_msgs", "ament_index_python", "control_msgs", "rosgraph_msgs", "trajectory_msgs"}


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, what it names, and whether it runs on import."""

    module: str
    name: str
    line: int
    eager: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def modules() -> Iterator[tuple[str, Path]]:
    for top in ("vla_align_ros", "training"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def find_imports(module: str, source: str) -> Iterator[Import]:
    """Yield every import of a source text; those under TYPE_CHECKING count, but never as eager."""

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, eager)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: relative import"
                for alias in child.names:
                    yield Import(module, f"{child.module}.{alias.name}", child.lineno, eager)
            else:
                lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from visit(child, eager and not lazy and not typing_only)

    yield from visit(ast.parse(source), True)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def unit_of(module: str) -> str:
    """Return the most specific key of ALLOWED that holds a module."""
    found = [unit for unit in ALLOWED if inside(module, unit) and unit != "vla_align_ros"]
    if module == "vla_align_ros":
        found = [module]
    assert found, f"{module} belongs to no unit; give it a place in ALLOWED"
    return max(found, key=len)


IMPORTS = [found for name, path in modules() for found in find_imports(name, path.read_text())]


def test_the_walk_sees_both_trees() -> None:
    assert {name.partition(".")[0] for name, _ in modules()} == {"vla_align_ros", "training"}
    assert any(not found.eager for found in IMPORTS)


def test_imports_inside_functions_are_told_apart() -> None:
    source = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from c import d\n"
    found = {item.name: item.eager for item in find_imports("m", source)}
    assert found == {"a": True, "b": False, "c.d": False}


def test_arrows_point_one_way() -> None:
    wrong = []
    for found in IMPORTS:
        unit = unit_of(found.module)
        top, _, rest = found.name.partition(".")
        if top == "vla_align_ros" and not inside(found.name, unit):
            allowed = rest.partition(".")[0] in ALLOWED[unit]
            if not allowed:
                wrong.append(f"{found}, but {unit} may only import {sorted(ALLOWED[unit])}")
        if top == "training" and not inside(unit, "training"):
            wrong.append(f"{found}, but nothing on the robot may import training")
    assert not wrong, "\n".join(wrong)


def test_ros_is_imported_in_the_ros_package_alone() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.name.partition(".")[0] in ROS and not inside(found.module, "vla_align_ros.ros")
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_load_lazily_in_the_file_named_for_them() -> None:
    wrong = []
    for found in IMPORTS:
        library = found.name.partition(".")[0]
        if library not in LAZY or not inside(found.module, "vla_align_ros"):
            continue
        if not any(inside(found.module, place) for place in LAZY[library]):
            wrong.append(f"{found}, which belongs in {LAZY[library] or 'training'}")
        elif found.eager and not any(inside(found.module, place) for place in EAGER):
            wrong.append(f"{found} at its top; import it inside the function that needs it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["contract", "runtime", "inference", "commands", "cli"])
def test_importing_loads_no_heavy_library(package: str) -> None:
    names = [
        name
        for name, _ in modules()
        if inside(name, f"vla_align_ros.{package}") and name not in EAGER
    ]
    assert names
    heavy = sorted({*LAZY, "rclpy"})
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for _, path in modules()}
    missing = [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]
    assert not missing, f"no __init__.py in {sorted(missing)}: setup.py would leave them out"


def test_launch_config_and_test_are_no_packages() -> None:
    """An __init__.py in launch/ would shadow ROS's own `launch`."""
    found = [path for folder in ("launch", "config", "test") for path in (ROOT / folder).rglob("*")]
    assert found
    assert not [str(path) for path in found if path.name == "__init__.py"]


def test_no_test_imports_a_module_whose_name_stands_twice() -> None:
    """`test` is no package: of two conftests, `import conftest` finds whichever came first."""
    tests = sorted((ROOT / "test").rglob("*.py"))
    names = Counter(path.stem for path in tests)
    found = [use for path in tests for use in find_imports(path.stem, path.read_text())]
    assert found
    assert not [str(use) for use in found if names[use.name.split(".")[0]] > 1]
