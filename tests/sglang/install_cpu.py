"""Installs a stock SGLang that runs without a GPU, in an environment of its own.

    python tests/sglang/install_cpu.py FOLDER

FOLDER/python is then an interpreter for `--sglang-python`. SGLang pins another torch than ours and
kernels for CUDA, so it is installed without what it asks for, and with what it needs here: about
2 GB, three minutes. Nothing of it is changed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

SGLANG = ("sglang==0.5.15.post1", "compressed-tensors==0.20.0")
NEEDED = (
    "torch==2.13.0 transformers==5.12.1 triton accelerate numpy aiohttp uvloop psutil "
    "pillow requests einops prometheus-client tiktoken sentencepiece scipy pandas "
    "fastapi==0.128.0 starlette<0.51 uvicorn python-multipart orjson pyzmq msgspec pydantic "
    "setproctitle pybase64 partial-json-parser interegular loguru openai==2.6.1 "
    "openai-harmony==0.0.4 soundfile gguf dill jsonschema xxhash IPython zstandard "
    "sglang-router==0.3.2"
)
RUNNER = """#!/bin/sh
SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1 exec {python} "$@"
"""


def install(folder: Path) -> None:
    venv, runner = folder / "venv", folder / "python"
    if runner.is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *NEEDED.split()], check=True)
    subprocess.run([*pip, "--no-deps", *SGLANG], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "torchvision").mkdir()
    shutil.copy(Path(__file__).with_name("stand_in.py"), site / "torchvision" / "__init__.py")
    runner.write_text(RUNNER.format(python=python))
    runner.chmod(0o755)


if __name__ == "__main__":
    install(Path(sys.argv[1]).resolve())
