"""What is attacked: for every kind of input a sound folder, which of its files are damaged, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.attacks import mutate
from tests.helpers.golden_data import GOLDEN

FOLDERS, BEFORE = GOLDEN / "folders", GOLDEN / "written_before"
TEXT = "GLM 是语言模型. <|user|> [MASK]\n  two  blanks 😀"
Call = Callable[[Path, Random], object]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """``sound``: a folder. ``files``: names of those that are damaged, as patterns. ``call``: reads the folder."""

    sound: Path
    files: Sequence[str]
    call: Call

    def damage(self, folder: Path, chooser: Random) -> str:
        """Copy the sound folder and damage one file; its name."""
        shutil.copytree(self.sound, folder)
        names = sorted({path.name for pattern in self.files for path in folder.glob(pattern)})
        if not names:
            return ""
        path = folder / chooser.choice(names)
        if path.suffix == ".bin":
            mutate.damaged_torch(path, chooser)
        elif path.suffix == ".safetensors":
            mutate.damaged_safetensors(path, chooser)
        elif path.suffix == ".json":
            path.write_bytes(mutate.damaged_json(path.read_bytes(), chooser))
        else:
            path.write_bytes(mutate.damaged(path.read_bytes(), chooser))
        return path.name


def checkpoint(folder: Path, chooser: Random) -> None:
    """Open, audit, and read every parameter."""
    from glm_export.checkpoints.checkpoint import open_checkpoint

    opened = open_checkpoint(folder)
    opened.audit()
    for _, tensor in opened.parameters():
        tensor.sum()
    if opened.prefix is not None:
        opened.prefix.initial_cache(opened.config)


def inspected(folder: Path, chooser: Random) -> None:
    """What ``inspect`` prints."""
    from glm_export.deployment.inspect import inspect_folder

    inspect_folder(folder)


def adapter(base: Path) -> Call:
    """Open a base with the folder as its adapter."""

    def call(folder: Path, chooser: Random) -> None:
        from glm_export.checkpoints.checkpoint import open_checkpoint

        opened = open_checkpoint(base, adapters=[folder])
        opened.audit()
        for _, tensor in opened.parameters():
            tensor.sum()
        if opened.prefix is not None:
            opened.prefix.initial_cache(opened.config)

    return call


def tokenizer(folder: Path, chooser: Random) -> None:
    """Load, encode, decode, chat."""
    from glm_export.families import read_config
    from glm_export.model_folder import read_json
    from glm_export.tokenizers import load_tokenizer

    config = read_config(read_json(folder, "config.json"))
    loaded = load_tokenizer(folder, config)
    ids = loaded.encode(TEXT)
    loaded.decode(ids)
    loaded.decode(chooser.sample(range(70_000), 30))
    if config.family != "glm_infilling":
        loaded.chat([{"role": "user", "content": TEXT}])
        loaded.parse_reply(TEXT)


def converted(folder: Path, chooser: Random) -> None:
    """Write the tokenizer as ``tokenizer.json``."""
    from glm_export.families import read_config
    from glm_export.model_folder import read_json
    from glm_export.tokenizers import load_tokenizer
    from glm_export.tokenizers.conversion import convert

    config = read_config(read_json(folder, "config.json"))
    convert(folder, config, load_tokenizer(folder, config)).loader_config({})


def program(folder: Path, chooser: Random) -> None:
    """Load an exported folder and write two tokens."""
    from glm_export import api
    from glm_export.generation.generate import generate_ids
    from glm_export.generation.stopping import Stopping

    with api.load_session(folder) as session:
        generate_ids(session, [[5, 6, 7]], stopping=Stopping(max_new_tokens=2))


def engine(folder: Path, chooser: Random) -> None:
    """Open an engine's folder."""
    from glm_export.artifacts.engine import load_engine

    load_engine(folder)


def verified(folder: Path, chooser: Random) -> None:
    """Hold a folder to its signature, or to its manifest where it has none."""
    from glm_export.artifacts.manifest import SIGNATURE
    from glm_export.certificates.options import Trust
    from glm_export.certificates.verify import verify
    from glm_export.errors import ComparisonFailedError

    signed = (folder / SIGNATURE).exists()
    found = verify(folder, trust=Trust(key=BEFORE / "signed.pub") if signed else None)
    for said in map(str, (*found.differences, *found.problems)):
        raise ComparisonFailedError(said)


def ranges(folder: Path, chooser: Random) -> None:
    """Load ranges and make a recipe's numbers of them."""
    from glm_export.calibration.ranges import load_ranges
    from glm_export.calibration.recipes import load
    from glm_export.checkpoints.checkpoint import open_checkpoint

    loaded = load_ranges(folder)
    loaded.require_checkpoint(open_checkpoint(BEFORE / "checkpoint").identity)
    loaded.maxima()
    for name in ("int8-smoothquant", "int8-static", "int8-kv"):
        loaded.quantization(load(name), chooser.choice(("float16", "bfloat16", "float32")))


def corpus(folder: Path, chooser: Random) -> None:
    """Read rows."""
    from glm_export.calibration.corpus.load import load_corpus
    from glm_export.families import read_config
    from glm_export.model_folder import read_json
    from glm_export.tokenizers import load_tokenizer

    model = GOLDEN / "chatglm3"
    config = read_config(read_json(model, "config.json"))
    loaded = load_tokenizer(model, config)
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(".source.json"):
            load_corpus(path, loaded, config)


def prompts(folder: Path, chooser: Random) -> None:
    """Texts and conversations that nobody writes."""
    from glm_export.families import read_config
    from glm_export.model_folder import read_json
    from glm_export.tokenizers import load_tokenizer

    config = read_config(read_json(folder, "config.json"))
    loaded = load_tokenizer(folder, config)
    text = "".join(
        chr(chooser.randrange(chooser.choice((0x20, 0x80, 0x3000, 0xD800, 0xE000, 0x110000)))) for _ in range(200)
    )
    odd = chooser.choice((text, *mutate.ODD))
    kind = chooser.randrange(3)
    if kind == 0:
        loaded.decode(loaded.encode(text * chooser.choice((1, 100))))
    elif kind == 1:
        loaded.decode([chooser.choice((0, -1, 2**31, 2**40, 5, 10**6)) for _ in range(9)])
        loaded.parse_reply(text.join(("<tool_call>", "<arg_key>", "{", "```python\n", '{"a": NaN}')))
    else:
        message = {"role": chooser.choice(("user", "assistant", odd)), "content": odd}
        key = chooser.choice(("tool_calls", "metadata", "reasoning_content", "name"))
        loaded.chat(chooser.choice(([message], [message | {key: odd}], odd)), tools=chooser.choice((None, odd)))


def readers(work: Path) -> dict[str, Reader]:
    """Every kind of input by name; what is not among the golden folders is made in ``work``."""
    found: dict[str, Reader] = {}
    for name in ("chatglm", "chatglm2", "chatglm3", "glm", "glm4_hf", "glm4_moe", "glm4_remote"):
        found[f"config {name}"] = Reader(
            sound=GOLDEN / name, files=["config.json", "generation_config.json"], call=checkpoint
        )
    for name in ("chatglm2", "chatglm3", "glm4_moe"):
        found[f"index {name}"] = Reader(sound=GOLDEN / name, files=["*.index.json"], call=checkpoint)
    found["safetensors"] = Reader(sound=GOLDEN / "chatglm3", files=["model-*.safetensors"], call=checkpoint)
    found["torch"] = Reader(sound=GOLDEN / "chatglm2", files=["*.bin"], call=checkpoint)
    found["torch one file"] = Reader(sound=GOLDEN / "glm", files=["*.bin"], call=checkpoint)
    beside = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
    own = {"chatglm": "ice_text.model", "chatglm2": "tokenizer.model", "chatglm3": "tokenizer.model",
           "glm4_remote": "tokenizer.model", "glm": "cog-pretrain.model"}  # fmt: skip
    for name, file in own.items():
        sound = _with_tokens(GOLDEN / name, work / name)
        found[f"tokenizer {name}"] = Reader(sound=sound, files=[file, *beside], call=tokenizer)
        found[f"prompts {name}"] = Reader(sound=sound, files=[], call=prompts)
    for name in ("chatglm3", "glm4_remote"):
        found[f"conversion {name}"] = Reader(sound=work / name, files=["tokenizer.model", beside[0]], call=converted)
    json_folder = _with_tokenizer_json(work / "glm4_remote", work / "tokenizer_json")
    found["tokenizer.json"] = Reader(sound=json_folder, files=["tokenizer.json", *beside], call=tokenizer)
    for name in ("lora_plain", "lora_rs", "lora_dora", "lora_mts"):
        call = adapter(FOLDERS / "lora_base")
        found[f"adapter {name}"] = Reader(sound=FOLDERS / name, files=["adapter_*"], call=call)
    for name in ("ptuning_only_chatglm", "ptuning_only_chatglm2"):
        base = GOLDEN / name.rpartition("_")[2]
        found[f"prefix {name}"] = Reader(
            sound=FOLDERS / name, files=["*.json", "*.bin", "*.safetensors"], call=adapter(base)
        )
    for name in ("ptuning_proj_chatglm2", "ptuning_full_chatglm"):
        found[f"prefix {name}"] = Reader(
            sound=FOLDERS / name, files=["config.json", "*.bin", "*.safetensors"], call=checkpoint
        )
    for name in ("fp8_ct_native", "gptq_native", "int4_chatglm", "int8_chatglm", "vl_glm4v", "tf5_glm4_yarn"):
        found[f"folder {name}"] = Reader(
            sound=FOLDERS / name, files=["*.json", "*.bin", "*.safetensors"], call=checkpoint
        )
    for name in ("onnx", "ort-int4", "onnx-int8-kv"):
        files = ["manifest.json", "model.onnx", "model.onnx.data", "tokenizer*", "*.safetensors"]
        found[f"program {name}"] = Reader(sound=BEFORE / name, files=files, call=program)
    found["engine"] = Reader(sound=_engine(work / "engine"), files=["engine.json"], call=engine)
    import glm_export.certificates.signature  # noqa: F401 - its libraries once, not for every input

    files = ["model.sig", "model.intoto.jsonl", "manifest.json"]
    found["signed"] = Reader(sound=BEFORE / "signed", files=files, call=verified)
    found["certified"] = Reader(sound=_certified(work / "certified"), files=["manifest.json"], call=verified)
    found["ranges"] = Reader(sound=BEFORE / "ranges", files=["ranges.json", "ranges.safetensors"], call=ranges)
    found["corpus"] = Reader(sound=_corpora(work / "corpora"), files=["*"], call=corpus)
    for name, folder in (
        ("checkpoint", GOLDEN / "glm4_hf"),
        ("program", BEFORE / "onnx"),
        ("ranges", BEFORE / "ranges"),
    ):
        found[f"inspect {name}"] = Reader(sound=folder, files=["*.json", "model.onnx"], call=inspected)
    return found


def _with_tokens(source: Path, folder: Path) -> Path:
    """A tokenizer's folder with added tokens and a template."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if not path.name.startswith(("golden", "tokenizer_golden", "model", "pytorch_model")):
            shutil.copyfile(path, folder / path.name)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    if source.name != "glm":
        values["added_tokens_decoder"] = {"66000": {"content": "<|extra|>", "special": True, "lstrip": False}}
    values["additional_special_tokens"] = ["<|extra|>"]
    values["chat_template"] = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ eos_token }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def _with_tokenizer_json(source: Path, folder: Path) -> Path:
    from glm_export.families import read_config
    from glm_export.tokenizers import load_tokenizer
    from glm_export.tokenizers.conversion import convert

    plain = folder.with_name("plain")
    shutil.copytree(source, plain)
    values = json.loads((plain / "tokenizer_config.json").read_text())
    values.pop("added_tokens_decoder")
    (plain / "tokenizer_config.json").write_text(json.dumps(values))
    config = read_config(json.loads((source / "config.json").read_text()))
    built = convert(plain, config, load_tokenizer(plain, config))
    folder.mkdir()
    shutil.copyfile(GOLDEN / "glm4_hf" / "config.json", folder / "config.json")
    built.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(built.loader_config({})))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def _certified(folder: Path) -> Path:
    """The signed folder as it would be without a key."""
    shutil.copytree(BEFORE / "signed", folder, ignore=shutil.ignore_patterns("model.sig", "model.intoto.jsonl"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["proof"]["signed_in"] = []
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _engine(folder: Path) -> Path:
    shutil.copytree(BEFORE / "engine", folder)
    for name, size in json.loads((folder / "engine.json").read_text())["sizes"].items():
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(size))
    return folder


def _corpora(folder: Path) -> Path:
    import gzip

    from glm_export.embedded import EMBEDDED

    folder.mkdir()
    lines = (EMBEDDED / "technical.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "rows.jsonl.source.json").write_text(json.dumps({"origin": "here", "licence": "none"}))
    chats = [
        {"messages": [{"role": "user", "content": str(row)[:99]}, {"role": "assistant", "content": "yes"}]}
        for row in rows
    ]
    turns = [
        {"conversations": [{"from": "human", "value": str(row)[:99]}, {"from": "gpt", "value": "no"}]} for row in rows
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "turns.json").write_text(json.dumps(turns))
    (folder / "alpaca.json").write_text(
        json.dumps([{"instruction": "do", "input": "", "output": str(row)[:99]} for row in rows])
    )
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    (folder / "prose.txt").write_text("\n\n".join(str(row) for row in rows))
    return folder
