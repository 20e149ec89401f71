"""`starft env`."""

import argparse
import importlib.metadata
import os
import platform
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import starft_hf
from starft_hf.cli.output import show
from starft_hf.utils.files import expanded


SUMMARY = "print versions and hardware for a bug report, without paths and names"

_PACKAGES = (
    *("torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate", "peft", "huggingface_hub"),
    *("tokenizers", "safetensors", "numpy", "pandas", "pyarrow", "pillow", "pillow-heif", "scikit-learn", "scipy"),
    *("open_clip_torch", "matplotlib", "gradio", "onnx", "onnxruntime", "wandb", "trackio", "tensorboard"),
    *("deepspeed", "bitsandbytes", "kernels"),
)
# Where their values are numbers or switches these are shown, of others only that they are set.
_VARIABLES = (
    *(
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DISABLE_SYMLINKS",
    ),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_DATASETS_IN_MEMORY_MAX_SIZE"),
    *("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_THREADING_LAYER"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"),
    *("HIP_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *(
        "NCCL_P2P_DISABLE",
        "NCCL_IB_DISABLE",
        "NCCL_SHM_DISABLE",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "TORCH_COMPILE_DISABLE",
    ),
    *("TORCHDYNAMO_DISABLE", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "WANDB_MODE", "WANDB_DISABLED"),
)
_SWITCH = r"(?:\d{1,9}|true|false|yes|no|on|off)"
_HARMLESS = re.compile(rf"(?:[a-z_0-9]+:)?{_SWITCH}(?:,(?:[a-z_0-9]+:)?{_SWITCH})*", re.IGNORECASE)

# Settings of `accelerate config` that name neither machines nor files.
_ACCELERATE = (
    *("compute_environment", "distributed_type", "mixed_precision", "use_cpu", "num_processes", "num_machines"),
    *("machine_rank", "gpu_ids", "debug", "same_network", "downcast_bf16", "enable_cpu_affinity", "rdzv_backend"),
    *("fsdp_version", "fsdp_sharding_strategy", "fsdp_reshard_after_forward", "fsdp_auto_wrap_policy"),
    *("fsdp_state_dict_type", "fsdp_offload_params", "fsdp_activation_checkpointing", "fsdp_use_orig_params"),
    *("fsdp_cpu_ram_efficient_loading", "dynamo_backend", "dynamo_mode", "zero_stage", "offload_optimizer_device"),
)
_WORD = re.compile(r"\w[\w,]{0,40}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> None:
    found = environment()
    show(options, found, *_lines(found))


def environment() -> dict[str, Any]:
    """Versions and hardware. Only torch is imported, and what fails is named."""
    return {
        "starft_hf": starft_hf.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": _platform(),
        **_machine(),
        "packages": {name: _version_of(name) for name in _PACKAGES},
        **_torch(),
        "accelerate_config": _accelerate_config(),
        "environment": {name: _shown(os.environ[name]) for name in _VARIABLES if name in os.environ},
    }


def _platform() -> str:
    # What follows the numbers of a kernel may be anything.
    release = re.match(r"[\d.]*\d", platform.mac_ver()[0] or platform.release())
    libc = " ".join(platform.libc_ver()).strip()
    parts = (platform.system(), release and release[0], platform.machine(), libc and f"({libc})")
    return " ".join(part for part in parts if part)


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    with suppress(Exception):
        import psutil

        memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpus": usable, "memory_gib": memory}


def _version_of(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _torch() -> dict[str, Any]:
    """What torch was built for and sees of GPUs, or the kind of error by which it cannot be imported."""
    found: dict[str, Any] = {"torch_error": None, "cuda": None, "cudnn": None, "rocm": None, "mps": None, "gpus": []}
    try:
        import torch

        found |= {"cuda": torch.version.cuda, "rocm": torch.version.hip, "mps": torch.backends.mps.is_available()}
        found["cudnn"] = torch.backends.cudnn.version()
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpu = {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
            found["gpus"].append({**gpu, "capability": f"{properties.major}.{properties.minor}"})
    except Exception as error:
        # Messages name paths.
        found["torch_error"] = type(error).__name__
    return found


def _accelerate_config() -> dict[str, Any] | None:
    """Settings of the file that `accelerate config` writes, without importing accelerate."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    folder = expanded(os.environ.get("HF_HOME", cache)) / "accelerate"
    file = next((file for ending in ("yaml", "json") if (file := folder / f"default_config.{ending}").is_file()), None)
    if file is None:
        return None
    try:
        from starft_hf.utils.untrusted import read_yaml

        # JSON is YAML.
        content = read_yaml(file)
        nested = [part for part in content.values() if isinstance(part, dict)]
    except Exception as error:
        return {"error": type(error).__name__}
    settings = {str(name): value for part in (content, *nested) for name, value in part.items()}
    return {name: settings[name] for name in _ACCELERATE if name in settings and _is_word(settings[name])}


def _is_word(value: Any) -> bool:
    return isinstance(value, (bool, int)) or (isinstance(value, str) and _WORD.fullmatch(value) is not None)


def _shown(value: str) -> str:
    return value if _HARMLESS.fullmatch(value) else "set"


def _lines(found: dict[str, Any]) -> list[str]:
    packages = [f"{name} {version}" for name, version in found["packages"].items() if version is not None]
    missing = [name for name, version in found["packages"].items() if version is None]
    gpus = Counter(f"{gpu['name']}, {gpu['memory_gib']} GiB, {gpu['capability']}" for gpu in found["gpus"])
    rows: dict[str, Any] = {
        "starft_hf": found["starft_hf"],
        "Python": found["python"],
        "platform": found["platform"],
        "CPUs": f"{found['cpus']}, {found['memory_gib'] or 'unknown'} GiB of memory",
        "packages": ", ".join(packages),
        "not installed": ", ".join(missing),
        "import of torch": f"fails with {found['torch_error']}" if found["torch_error"] else "works",
        **{name: found[key] for name, key in (("CUDA", "cuda"), ("cuDNN", "cudnn"), ("ROCm", "rocm"), ("MPS", "mps"))},
        "GPUs": "; ".join(f"{count} x {gpu}" for gpu, count in gpus.items()) or "none",
        "accelerate config": _pairs(found["accelerate_config"]),
        "variables": _pairs(found["environment"]),
    }
    return [f"- {name}: {'none' if value in (None, '', False) else value}" for name, value in rows.items()]


def _pairs(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (values or {}).items())
