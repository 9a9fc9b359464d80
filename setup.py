"""Packaging. Tool settings live in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
  "absl-py>=2.1",  # flags that grain's worker processes read
  "array_record>=0.8",  # the shards of prepared data sets; grain brings it along
  "flax>=0.12",  # linen modules; first to support jax 0.10
  "fsspec>=2024.6",  # prepared data sets in object stores; gs:// needs gcsfs, s3:// s3fs besides
  "grain>=0.2.16",  # the input pipeline, whose iterator is part of a checkpoint
  "jax>=0.10",  # the last release line that still serves Python 3.11
  "jaxtyping>=0.3",  # array annotations, checked while testing
  "ml-collections>=1.1",  # config trees with command-line overrides
  "nibabel>=5.3",  # NIfTI volumes; first to support NumPy 2
  "numpy>=2.0",
  "optax>=0.2.6",  # optimisers, schedules
  "orbax-checkpoint>=0.11.25",  # atomic, asynchronous checkpoints
  "pillow>=11",  # PNG and JPEG
  "pydicom>=3.0",  # DICOM; 3.0 has the pixel API that is used
  "tensorboardX>=2.6.2",  # TensorBoard events without TensorFlow
  "simplejpeg>=1.8",  # libjpeg-turbo into arrays: most JPEGs in half of Pillow's time
  "safetensors>=0.5",  # weights in and out, never pickles
  "scipy>=1.13",  # affine maps of volumes; jax needs it anyway
  "tokenizers>=0.21",  # byte-level BPE, the shipped tokenizer
  "tqdm>=4.66",  # the progress bar
  "transformers>=5.0",  # tokenizer folders and image processors; never its models, so no torch
]

# Compressed DICOM files, through pydicom's plug-ins; baseline JPEG, JPEG 2000 and RLE need none.
DICOM = [
  "pylibjpeg>=2.0",
  # Lossless and 12-bit JPEG, JPEG-LS. GPL-3.0, so nobody gets it unasked; of the decoders tried
  # (gdcm, pyjpegls) the one that neither crashes nor hangs on damaged files.
  "pylibjpeg-libjpeg>=2.1",
  "pylibjpeg-openjpeg>=2.0",  # high-throughput JPEG 2000, and colour of more than 8 bits
]

# The implementations that published numbers come from; none needs data or torch. The package has
# its own of the others (COCO's, BERTScore).
METRICS = [
  "nltk>=3.9",  # BLEU of sentences, METEOR
  "rouge-score>=0.1.2",  # Google's ROUGE, unchanged since 2022: what papers report
  "sacrebleu>=2.4",  # BLEU and chrF with tokens that make them comparable
]

# What the notebooks in colab/ need beside jupyter or Colab, which have the first two.
NOTEBOOKS = [
  "ipykernel>=7.0",  # runs their cells
  "matplotlib>=3.9",  # their figures
  "nbclient>=0.10",  # runs them without a browser: colab/run.py
]

EXTRAS_REQUIRE = {
  "test": [
    *DICOM,
    "beartype>=0.20",  # checks the jaxtyping annotations
    "gguf>=0.17",  # writes the files that the tests of the extra read
    "hypothesis>=6.100",
    "pyarrow>=18",  # likewise
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",  # .ci/run shares the tests between two processes
    *METRICS,
    *NOTEBOOKS,
  ],
  "dev": [
    "pre-commit>=4.0",
    "pyright[nodejs]>=1.1.400",  # with its own node: nothing to install by hand
    "ruff>=0.9",
  ],
  "parquet": ["pyarrow>=18"],  # data sets that are distributed as parquet files
  "dicom": DICOM,
  "gguf": ["gguf>=0.17"],  # dequantises the checkpoints of llama.cpp
  "metrics": METRICS,
  "notebooks": NOTEBOOKS,
  "docs": [  # the site: mkdocs build --strict
    "mkdocs>=1.6,<2",  # 2 has neither plug-ins nor themes of 1
    "mkdocs-material>=9.7",
    "mkdocstrings[python]>=1.0",  # pages of the API from docstrings, without importing the code
  ],
  "tpu": ["jax[tpu]>=0.10"],
  # The same packages, for a machine without TPUs: libtpu, in the version that jax pins, has the
  # compiler that medflax.tools.aot asks. 700 MB that training on CPUs never needs.
  "aot": ["jax[tpu]>=0.10"],
  "cuda": ["jax[cuda13]>=0.10"],
  "slurm": ["submitit>=1.5"],  # launch/slurm.py
}

URL = "https://github.com/medflax/medflax"  # the notebooks' badges and their `git clone` as well

setup(
  name="medflax",
  version="0.1.0",
  description="Few-shot medical vision-language models in JAX and Flax",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  url=URL,
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["medflax", "medflax.*"]),
  package_data={"medflax": ["**/*.json", "**/*.html", "**/*.css", "**/*.js", "**/*.safetensors"]},
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
