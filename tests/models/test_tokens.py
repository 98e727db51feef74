"""Tokens and text: against transformers' converter, and round trips of everything that UTF-8 can say."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import gguf
import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from diptych.errors import InvalidRequest, UnsupportedModel
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.models.tiny import ARCHITECTURES, Architecture
from diptych.models.tokenizer import build_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces   three\n\n\tTabs",
    "1234 5 67  890",
    "naïve café Ünïcödé",
    "日本語テスト 中文",
    "🤖🎉👨‍👩‍👧 emoji",
    "def f(x):\n    return x**2  # comment\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b <|endoftext|>",
    "don't we'll I'M THEY'RE",
    "\r\n\r\n x",
    "العربية עברית",
    "\u200b zero width",
    "   ",
    "\n",
    "",
    "x" * 300,
    "C++ & <html> </s> {json: [1,2,3]}",
    "١٢٣ Ⅷ ½ ²",
    "a  1  b",
    "100% $5.00 №3",
]


def scrambled(seed: int, count: int = 200) -> list[str]:
    pieces = [
        "a",
        "b",
        " ",
        "  ",
        "\n",
        "1",
        "23",
        "é",
        "🤖",
        "!",
        "?.",
        "'s",
        "'S",
        "<|im_end|>",
        "日",
        "\t",
        "_",
        "ß",
    ]
    rng = random.Random(seed)
    return ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 25))) for _ in range(count)]


@pytest.fixture(params=ARCHITECTURES)
def chat(request: pytest.FixtureRequest, tiny_bundles: dict[Architecture, ModelBundle]) -> ChatFormat:
    return ChatFormat.load(tiny_bundles[request.param])


def text_of(chat: ChatFormat, tokens: tuple[int, ...]) -> str:
    decoder = chat.decoder()
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tokens_are_those_of_transformers(
    tiny_files: dict[Architecture, Path], tiny_bundles: dict[Architecture, ModelBundle], kind: Architecture
) -> None:
    path = tiny_files[kind]
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    ours = ChatFormat.load(tiny_bundles[kind])
    for text in TEXTS + scrambled(1):
        assert list(ours.encode(text)) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_a_prompt_is_what_transformers_makes_of_it(tiny_files: dict[Architecture, Path], chat: ChatFormat) -> None:
    path = tiny_files["llama"]
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    messages = [{"role": "user", "content": "What's 12 + 30?"}, {"role": "assistant", "content": "42 🎉"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.prompt_tokens(messages) == chat.encode(rendered)
    assert rendered.endswith("<|im_start|>assistant\n")


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(llama_chat: ChatFormat, text: str) -> None:
    assume(not any(control in text for control in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")))
    assert text_of(llama_chat, llama_chat.encode(text)) == text


@pytest.fixture(scope="module")
def llama_chat(tiny_bundles: dict[Architecture, ModelBundle]) -> ChatFormat:
    return ChatFormat.load(tiny_bundles["llama"])


def test_characters_over_several_tokens_come_whole(llama_chat: ChatFormat) -> None:
    tokens = llama_chat.encode("a🤖b")
    decoder = llama_chat.decoder()
    pushed = [decoder.push(token) for token in tokens]
    assert len(tokens) == 6
    assert pushed == ["a", "", "", "", "🤖", "b"]
    assert decoder.flush() == ""


def test_a_character_that_never_ends_is_replaced(llama_chat: ChatFormat) -> None:
    tokens = llama_chat.encode("a🤖")[:-1]
    decoder = llama_chat.decoder()
    assert [decoder.push(token) for token in tokens] == ["a", "", "", ""]
    assert decoder.flush() == "\ufffd"
    decoder = llama_chat.decoder()
    broken = "".join(decoder.push(token) for token in (*tokens, *llama_chat.encode("b")))
    assert broken == "a\ufffdb"


def test_decoders_do_not_share_state(llama_chat: ChatFormat) -> None:
    robot, cake = llama_chat.encode("🤖"), llama_chat.encode("🎂")
    one, two = llama_chat.decoder(), llama_chat.decoder()
    text = ["", ""]
    for a, b in zip(robot, cake, strict=True):
        text[0] += one.push(a)
        text[1] += two.push(b)
    assert text == ["🤖", "🎂"]


def test_control_tokens_have_no_text(chat: ChatFormat) -> None:
    assert [chat.token_text(token) for token in (0, 1, 2)] == [b"", b"", b""]
    assert text_of(chat, chat.encode("<|im_start|>hi<|im_end|>")) == "hi"
    assert chat.end_tokens == {0, 2}


def test_every_byte_is_a_token(llama_chat: ChatFormat) -> None:
    assert {llama_chat.token_text(token) for token in range(3, 259)} == {bytes([b]) for b in range(256)}


def test_token_outside_the_vocabulary(llama_chat: ChatFormat) -> None:
    with pytest.raises(InvalidRequest, match="99999"):
        llama_chat.token_text(99_999)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text"}]}],
        ["hi"],
        [{"role": "user", "content": "half \ud800 of a pair"}],
    ],
)
def test_messages_that_the_template_cannot_write(chat: ChatFormat, messages: list[object]) -> None:
    with pytest.raises(InvalidRequest):
        chat.prompt_tokens(messages)


def test_what_a_template_may_do(tiny_bundles: dict[Architecture, ModelBundle], llama_chat: ChatFormat) -> None:
    tokenizer = Tokenizer.from_file(tiny_bundles["llama"].tokenizer)

    def rendered(template: str, **more: object) -> str:
        chat = ChatFormat(tokenizer, template, tiny_bundles["llama"])
        return text_of(chat, chat.prompt_tokens([{"role": "user", "content": "é"}], **more))

    assert rendered("{{ messages | tojson }}") == '[{"role": "user", "content": "é"}]'
    assert rendered("{{ tools[0].name if tools else 'none' }}") == "none"
    assert rendered("{{ tools[0].name if tools else 'none' }}", tools=[{"name": "clock"}]) == "clock"
    assert rendered("{% for m in messages %}{% break %}{% endfor %}x") == "x"
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest):
        rendered("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest):
        rendered("{{ messages.append(1) }}")


def test_many_threads_may_encode(llama_chat: ChatFormat) -> None:
    texts = scrambled(5, 40)
    expected = [llama_chat.encode(text) for text in texts]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(10):
            wrong.extend(t for t, e in zip(texts, expected, strict=True) if llama_chat.encode(t) != e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def vocabulary(path: Path, kind: str, pre: str) -> Path:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab", "▁ab", "▁a"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-10.0, -11.0, -12.0, -1.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 6)
    if kind == "gpt2":
        writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sentencepiece(tmp_path: Path, tiny_bundles: dict[Architecture, ModelBundle]) -> None:
    path = vocabulary(tmp_path / "spm.gguf", "llama", "default")
    tokenizer = build_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="spm.gguf")
    for text in ("ab", "abab a", "a  b", "é", "</s>ab", "ba ab"):
        found = tokenizer.encode(text, add_special_tokens=False)
        assert found.ids == theirs(text, add_special_tokens=False)["input_ids"], text
    chat = ChatFormat(tokenizer, None, tiny_bundles["llama"])
    assert text_of(chat, chat.encode("ab é")) == " ab é"


@pytest.mark.parametrize(("kind", "pre", "names"), [("t5", "default", "t5"), ("gpt2", "mystery-9", "mystery-9")])
def test_tokenizers_that_are_not_known_are_refused(tmp_path: Path, kind: str, pre: str, names: str) -> None:
    with pytest.raises(UnsupportedModel, match=names):
        build_tokenizer(vocabulary(tmp_path / "v.gguf", kind, pre))
