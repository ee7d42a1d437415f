"""ChatGLM2's, ChatGLM3's and GLM-4's ``tokenizer.model`` as the ``tokenizer.json`` that other runtimes read.

Read by the ``tokenizers`` library, and so by transformers, Optimum and onnxruntime-genai. :func:`convert` holds the
result to our own reader on a set of texts: a folder gets an exact ``tokenizer.json``, or none.

ChatGLM2 and ChatGLM3 never read a special token out of a text ("sop" stands in "philosophy"), and ``tokenizer.json``
cannot say that. There a special token is called by its name with :data:`GUARD` in front; prompts get it from the chat
template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from glm_export import families
from glm_export.errors import CheckpointError, GlmExportError
from glm_export.model_folder import inside
from glm_export.spec.config import GlmConfig
from glm_export.tokenizers import Tokenizer, sentencepiece, tiktoken
from glm_export.tokenizers.added_tokens import AddedToken as ModelToken
from glm_export.tokenizers.chat.carried import carried_template
from glm_export.tokenizers.chat.templates import GUARD, built_in
from glm_export.tokenizers.streams.runs import byte_letters

BLANK = "▁"
ANY_NUMBER = 1 << 20
FORMAT: Any = sentencepiece_model_pb2  # its classes are made on import, out of type checkers' sight

PROBES = (
    "你好，世界！", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。", "Hello, world! It's 1234567890.",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass  # two  spaces\n",
    "for (int i = 0; i < n; ++i) { a[i] = -1.5e-3; }",
    "", " ", "   ", "\n", "\n\n  \n", "  leading and trailing  ", "a  b   c\t\td",
    "\u3000全角　空格\u00a0nbsp\u200bzero", "😀👍🏽👨\u200d👩\u200d👧 flags 🇨🇳", "Ünïcödé ñ ß Ж ﬁ ① ＦＵＬＬ",
    "العربية", "עברית", "हिन्दी ไทย 日本語 한국어", "--------====....//////",
    "aaaaaaaaaaaaaaaa 00000000 重复重复重复重复", f"{BLANK}{BLANK} x{BLANK}",
    "[MASK] [gMASK] [sMASK] sop eop <sop> <eop>",
    "<|user|>\n hi<|assistant|>", "</s> <s> <unk> <pad> <0x0A>", "\x00\x01\x7f\x1b[0m", "philosophy, people",
)  # fmt: skip
"""Chinese, English, code, emoji, runs of blanks, other scripts, names of special tokens, control characters."""

# onnxruntime-genai reads the pattern of a Split and not its behaviour: without one it cuts words as Llama 3 does, which
# is not how SentencePiece pieces were learnt. It matches with std::regex on UTF-8 bytes, whose stack grows with the
# match; so a cut comes after at most 500 bytes, where pieces end (before a blank, after a newline, between punctuation
# and a Chinese character), and between any two characters only where there is no such place. Every other reader joins
# what was matched: "contiguous" makes the whole text one match.
CUTS = (
    r"[\s\S]{0,500}(?:[^ ](?![^ ])|\n)"
    r"|[\s\S]{0,500}(?:。|，|！|？|；|：|、)(?=[\u00e4-\u00e9])"
    r"|[\s\S]{1,500}(?![\u0080-\u00bf])"
    r"|[\s\S]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """An exact ``tokenizer.json``, and what has to stand in ``tokenizer_config.json`` beside it.

    ``superseded``: files of the checkpoint that would give special tokens their unguarded names back.
    """

    tokenizer: tokenizers.Tokenizer
    settings: dict[str, Any]
    superseded: frozenset[str] = frozenset()

    def loader_config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``tokenizer_config.json``.

        Args:
            values: the checkpoint's own, empty where it has none.
        """
        kept = {key: value for key, value in values.items() if not self.superseded or key == "model_max_length"}
        return {key: value for key, value in (kept | self.settings).items() if value is not None}


def convert(folder: Path, config: GlmConfig, ours: Tokenizer) -> Conversion:
    """Turn the folder's ``tokenizer.model`` into a ``tokenizer.json`` with the same ids for every text.

    Args:
        folder: of a family that reads ``tokenizer.model``.
        config: says which family.
        ours: the folder's tokenizer as we read it.

    Raises:
        CheckpointError: the file is damaged, or no ``tokenizer.json`` says exactly what it says.
    """
    path = inside(folder, "tokenizer.model")
    family = families.load(config.family)
    superseded: frozenset[str] = frozenset()
    try:
        if isinstance(ours, sentencepiece.SentencePieceTokenizer):
            built = from_sentencepiece(path, ours.special, ours.added)
            superseded = frozenset({"special_tokens_map.json", "added_tokens.json", "chat_template.jinja"})
        elif isinstance(ours, tiktoken.TiktokenTokenizer):
            built = from_ranks(path, ours.special, family.SPLIT_PATTERN, ours.added)
        else:
            raise _inexact(path, "it is none of ChatGLM2, ChatGLM3 or GLM-4")
    except GlmExportError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise _inexact(path, str(error)) from error
    check_exact(ours, built, path, (*PROBES, *_probes_of(ours.added)))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                "padding_side": "left"}  # fmt: skip
    special: dict[int, AddedToken] = built.get_added_tokens_decoder()
    for role, index in (("eos_token", next(iter(config.eos_token_ids), -1)), ("pad_token", config.pad_token_id)):
        # An ordinary piece in such a role would be read out of texts.
        if index in special:
            settings[role] = special[index].content
    if ours.added and superseded:
        settings["added_tokens_decoder"] = {str(token.index): token.to_json() for token in ours.added}
    names = tuple(ours.named) if isinstance(ours, sentencepiece.SentencePieceTokenizer) else None

    def ids(text: str) -> list[int]:
        found: list[int] = built.encode(text, add_special_tokens=False).ids
        return found

    settings["chat_template"] = carried_template(ours, ids, built_in(config.family, family.CHAT), names)
    return Conversion(tokenizer=built, settings=settings, superseded=superseded)


def from_sentencepiece(
    path: Path, special: Mapping[str, int], added: Sequence[ModelToken] = ()
) -> tokenizers.Tokenizer:
    """A SentencePiece BPE model: pieces and scores, bytes for unknown characters, its own normalisation.

    Args:
        path: ``tokenizer.model``.
        special: special tokens that the family numbers after the pieces, by name.
        added: tokens of a fine-tuned model, recognised inside text.

    Raises:
        CheckpointError: it is no SentencePiece file, or is of a kind that ``tokenizer.json`` cannot express.
    """
    proto = FORMAT.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has a different home in every implementation
        raise CheckpointError(f"{path} is no SentencePiece model: {error}; download it again") from error
    kinds = FORMAT.ModelProto.SentencePiece
    if proto.trainer_spec.model_type != FORMAT.TrainerSpec.BPE:
        raise _inexact(path, "its model should be BPE, found another kind")
    if any(piece.type in (kinds.USER_DEFINED, kinds.UNUSED) for piece in proto.pieces):
        raise _inexact(path, "it has user-defined or unused pieces, which tokenizer.json reads otherwise")
    named = {token.text for token in added}
    unwritten = (kinds.CONTROL, kinds.UNKNOWN)
    hidden = {
        GUARD + piece.piece: index
        for index, piece in enumerate(proto.pieces)
        if piece.type in unwritten and piece.piece not in named
    }
    names = hidden | {GUARD + name: i for name, i in special.items()}
    vocabulary = {p.piece: i for i, p in enumerate(proto.pieces) if GUARD + p.piece not in hidden}
    _require_own_ids(path, added, vocabulary | names)
    ranked = [p.piece for p in sorted(proto.pieces, key=lambda p: -p.score) if p.type == kinds.NORMAL]
    model = models.BPE(
        vocabulary | names | {token.text: token.index for token in added},
        merges(ranked, vocabulary),
        unk_token=next((GUARD + p.piece for p in proto.pieces if p.type == kinds.UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
    built = tokenizers.Tokenizer(model)
    built.normalizer = _normalizer(proto.normalizer_spec)
    built.pre_tokenizer = pre_tokenizers.Split(Regex(CUTS), "contiguous")
    built.decoder = _decoder(proto.normalizer_spec)
    return _with_special(built, names, [GUARD + name for name in sentencepiece.PREFIX], added)


def _normalizer(spec: Any) -> normalizers.Sequence:
    """What SentencePiece does to a text first, in its order."""
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", BLANK))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{BLANK}+\z"), ""))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    return normalizers.Sequence(steps)


def _decoder(spec: Any) -> decoders.Sequence:
    """Blanks and bytes back; the dummy prefix, and what else stands in front where blanks do not count, is dropped."""
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", ANY_NUMBER if spec.remove_extra_whitespaces else 1, 0))
    return decoders.Sequence(steps)


def from_ranks(
    path: Path, special: Mapping[str, int], pattern: str, added: Sequence[ModelToken] = ()
) -> tokenizers.Tokenizer:
    """Tiktoken ranks: byte-level BPE behind the family's split pattern.

    Args:
        path: ``tokenizer.model``, lines of ``base64 rank``.
        special: special tokens by name, recognised inside text.
        pattern: where text is split before merging.
        added: tokens of a fine-tuned model beside those.

    Raises:
        CheckpointError: a line is not ``base64 rank``.
    """
    ranks = tiktoken.read_ranks(path)
    letters = byte_letters()
    spelled = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    pairs = merges(sorted(spelled, key=spelled.__getitem__), spelled)
    _require_own_ids(path, added, spelled | dict(special))
    numbered = spelled | dict(special) | {token.text: token.index for token in added}
    # tiktoken looks a whole split up before it merges.
    built = tokenizers.Tokenizer(models.BPE(numbered, pairs, ignore_merges=True))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    return _with_special(built, special, list(tiktoken.PREFIX), added)


def merges(ranked: Sequence[str], index: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair that makes a piece, the earliest piece first.

    SentencePiece and tiktoken join any two neighbours that together are a piece; ``tokenizer.json`` names the pairs.

    Args:
        ranked: the pieces, those joined earlier first.
        index: the id of every piece a pair may consist of.
    """
    pairs = []
    for piece in ranked:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [pair for pair in cuts if pair[0] in index and pair[1] in index]
        pairs += sorted(known, key=lambda pair: (index[pair[0]], index[pair[1]]))
    return pairs


def _require_own_ids(path: Path, added: Sequence[ModelToken], others: Mapping[str, int]) -> None:
    """``tokenizer.json`` numbers each token once, and splits words where Python's tokenizers split at blanks."""
    indexes = set(others.values())
    for token in added:
        if token.index in indexes and others.get(token.text) != token.index:
            raise _inexact(path, f"the added token {token.text} has the id {token.index} of another token")
        if token.text in others and others[token.text] != token.index:
            raise _inexact(path, f"{token.text} has the ids {others[token.text]} and {token.index}")
        if token.single_word:
            raise _inexact(path, f"{token.text} stands as a single word, of which others have another notion")


def _probes_of(added: Sequence[ModelToken]) -> Iterator[str]:
    """Texts with every added token between words, blanks and tokens."""
    for token in added:
        yield from (token.text, f"你好{token.text}world", f"  a  {token.text}  b {token.text}{token.text}\n")


def _with_special(
    built: tokenizers.Tokenizer, names: Mapping[str, int], prefix: Sequence[str], added: Sequence[ModelToken]
) -> tokenizers.Tokenizer:
    """Add special tokens, the model's own, and the prefix that ``encode`` puts before a text."""
    built.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    built.add_tokens([token.for_library() for token in added])
    built.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A"], pair=[*prefix, "$A", "$B"], special_tokens=[(name, names[name]) for name in prefix]
    )
    return built


def check_exact(ours: Tokenizer, built: tokenizers.Tokenizer, path: Path, texts: Iterable[str] = PROBES) -> None:
    """Compare ids and decoded text with our reader's.

    Args:
        ours: the reader.
        built: the converted tokenizer.
        path: its file, for the message.
        texts: what to compare on.

    Raises:
        CheckpointError: naming the first text that differs.
    """
    for text in texts:
        plain: list[int] = built.encode(text, add_special_tokens=False).ids
        if plain != ours.encode_plain(text) or built.encode(text).ids != ours.encode(text):
            raise _inexact(path, f"tokenizer.json would give other ids to {text!r}")
        if built.decode(plain) != ours.decode(plain):
            raise _inexact(path, f"tokenizer.json would decode {text!r} otherwise")


def _inexact(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written as tokenizer.json: {reason}; the folder gets none, and glm-export reads {path.name}"
    )
