"""Export of a tokenizer to the files that Hugging Face `tokenizers` and `transformers` load, with a chat template.

    python -m nanochat.tokenizer_json --out=FOLDER                # the tokenizer under the base directory
    python -m nanochat.tokenizer_json --out=FOLDER --tokenizer=A_FOLDER_OF_OURS

    AutoTokenizer.from_pretrained("FOLDER")                       # and tokenizers.Tokenizer.from_file("FOLDER/...")

Written: `tokenizer.json` (vocabulary, merges, split pattern), `tokenizer_config.json` (names of the special tokens) and
`chat_template.jinja`. The ids are those of `RustBPETokenizer.encode`. The template, with `add_generation_prompt` and
`return_assistant_tokens_mask`, gives the ids and the mask of `render_conversation` and `render_for_completion`.

Where the two must differ:

* Special tokens that are typed. Ours encodes text from people as ordinary text, always. Hugging Face's tokenizers look
  for the names of special tokens in all text and make the tokens of them: `tokenizer("<|bos|>")` is one id there.
  `tokenizer(text, split_special_tokens=True)` encodes as ours does.
* A chat template makes one long string and the tokenizer reads it afterwards, so a typed `<|assistant_start|>` cannot
  be told from a real one. The template raises where a conversation contains such a name; `render_conversation` doesn't.
* `transformers` finds the end of a masked stretch by its last character, and takes the first token of that character
  only. All stretches end with a special token, but for text that is followed at once by `python_output` (our engine
  never makes such a message). There the template raises if the text's last character may have several tokens.
* Patterns. `tokenizers` splits by another regex engine. The patterns of `split_pattern` mean the same to both; one with
  `$`, `^` or `{1,3}+` doesn't (lines, not the whole text; a repeat, not a possessive match) and is not exported.
* Lone surrogates (refused by `tokenizers`), characters that the Unicode version of another release of `tokenizers` does
  not know yet, and, where `rustbpe` is not built, runs of 16 384 and more whitespace characters (`tokenizer._parts`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat import configurator
from nanochat.common import UserError, print0
from nanochat.files import atomic_write
from nanochat.sample_texts import SAMPLES
from nanochat.tokenizer import RANKS_FILE, SPECIAL_TOKENS, RustBPETokenizer, byte_level_characters, get_tokenizer

TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

# ------------------------------------------------------------------------------------------------- ranks to merges


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that is joined to each token, in the order of the tokens' ranks.

    `{b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4} -> [(b"a", b"b"), (b"ab", b"c")]`

    We store tokens, the BPE of `tokenizers` wants pairs. Both join the neighbours of lowest rank first, the leftmost
    of equals, so they agree if a pair is in the list whenever it can stand side by side and its join is a token. For a
    token T that is one pair at most: when u and v, side by side, are joined to T, no part reached over the edges of
    T's bytes before. So all joins inside were chosen as if these bytes were alone, and T's bytes alone pass through
    just one state of two parts. Tokens whose bytes get stuck in three parts or more have no pair: they come about as
    whole words only (`ignore_merges`).
    """
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = _last_parts(token, ranks)
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def _last_parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts of `token`'s bytes when two are left, or when no neighbours can be joined any more."""
    parts = [token[i : i + 1] for i in range(len(token))]
    never = len(ranks)
    costs = [ranks.get(left + right, never) for left, right in zip(parts, parts[1:])]  # costs[i]: parts[i], parts[i+1]
    while len(parts) > 2 and (least := min(costs)) < never:
        i = costs.index(least)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del costs[i]
        if i > 0:
            costs[i - 1] = ranks.get(parts[i - 1] + parts[i], never)
        if i < len(costs):
            costs[i] = ranks.get(parts[i] + parts[i + 1], never)
    return parts


# --------------------------------------------------------------------------------------------------- the chat template

# How it is built: a check of the whole conversation, then the rendering. Text waits in `state.text` until something
# else comes, for two reasons: neighbouring parts of text are one stretch, and the masked stretch (`generation`) must
# end with the special token that follows. Those blocks stand outside macros, or transformers would lose their places.
# `-` on both sides of every tag: the line breaks here must not come out, those of the contents must.
CHAT_TEMPLATE = r"""{#- nanochat's conversation format. Renders as RustBPETokenizer.render_conversation does. -#}
{%- set names = SPECIAL_NAMES -%}
{%- set kinds = ['text', 'python', 'python_output'] -%}

{%- macro plain(text) -%}
    {%- for name in names -%}
        {%- if name in text -%}
            {{- raise_exception("the conversation contains the text " ~ name ~ ", which is the name of a special token:"
                ~ " a chat template cannot keep the two apart") -}}
        {%- endif -%}
    {%- endfor -%}
    {{- text -}}
{%- endmacro -%}

{%- if tools -%}
    {{- raise_exception("tools are not known to this model: its one tool is the calculator, in python parts") -}}
{%- endif -%}
{%- if not messages -%}
    {{- raise_exception("the conversation is empty") -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if 'role' not in message or 'content' not in message -%}
        {{- raise_exception("message " ~ loop.index0 ~ " of the conversation lacks role or content") -}}
    {%- endif -%}
    {%- if message['tool_calls'] -%}
        {{- raise_exception("message " ~ loop.index0 ~ " has tool_calls: write a call as a part of type python") -}}
    {%- endif -%}
    {%- set role, content = message['role'], message['content'] -%}
    {%- if role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception("message " ~ loop.index0 ~ " has the unknown role '" ~ role
            ~ "': use user or assistant (or system, first)") -}}
    {%- elif role != 'assistant' and content is not string -%}
        {{- raise_exception("message " ~ loop.index0 ~ ": the content of a " ~ role ~ " message must be a string") -}}
    {%- elif content is mapping or content is not iterable -%}
        {{- raise_exception("the content of an assistant message must be a string or a list of parts") -}}
    {%- endif -%}
{%- endfor -%}

{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages | length == 1 -%}
        {{- raise_exception("the conversation has only a system message: a user message must follow it") -}}
    {%- elif messages[1]['role'] == 'user' -%}
        {%- set merged = messages[0]['content'] ~ '\n\n' ~ messages[1]['content'] -%}
        {%- set turns = [{'role': 'user', 'content': merged}] + (messages[2:] | list) -%}
    {%- endif -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- set wanted = 'user' if loop.index0 % 2 == 0 else 'assistant' -%}
    {%- if turn['role'] != wanted -%}
        {{- raise_exception("turn " ~ loop.index0 ~ " of the conversation is from " ~ turn['role'] ~ ", not " ~ wanted
            ~ ": the two must alternate") -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and turns[-1]['role'] == 'assistant' -%}
    {%- set turns = turns[:-1] -%}
{%- endif -%}

{{- '<|bos|>' -}}
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- '<|user_start|>' ~ plain(turn['content']) ~ '<|user_end|>' -}}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- set state = namespace(text='') -%}
        {%- set parts = turn['content'] -%}
        {%- if parts is string -%}
            {%- set parts = [{'type': 'text', 'text': parts}] -%}
        {%- endif -%}
        {%- for part in parts -%}
            {%- if part is not mapping or part['type'] not in kinds or part['text'] is not string -%}
                {{- raise_exception("a part of an assistant message is not {'type': 'text', 'python' or"
                    ~ " 'python_output', 'text': a string}") -}}
            {%- endif -%}
            {%- if part['type'] == 'text' -%}
                {%- set state.text = state.text ~ part['text'] -%}
            {%- elif part['type'] == 'python' -%}
                {%- generation -%}
                {{- plain(state.text) ~ '<|python_start|>' ~ plain(part['text']) ~ '<|python_end|>' -}}
                {%- endgeneration -%}
                {%- set state.text = '' -%}
            {%- else -%}
                {%- if state.text -%}
                    {%- if state.text[-1] > '\x7f' -%}
                        {{- raise_exception("python_output follows text that ends in a character beyond ASCII:"
                            ~ " a chat template cannot mask that; put the python part between them") -}}
                    {%- endif -%}
                    {%- generation -%}
                    {{- plain(state.text) -}}
                    {%- endgeneration -%}
                    {%- set state.text = '' -%}
                {%- endif -%}
                {{- '<|output_start|>' ~ plain(part['text']) ~ '<|output_end|>' -}}
            {%- endif -%}
        {%- endfor -%}
        {%- generation -%}
        {{- plain(state.text) ~ '<|assistant_end|>' -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""

# ------------------------------------------------------------------------------------------------------- the files


def _check_portable(pattern: str) -> None:
    """Refuse a split pattern that tiktoken's regex engine and that of `tokenizers` (Oniguruma) read differently."""
    if found := re.search(r"(?<!\\)\{\d*,?\d*\}\+|(?<!\\)\$|(?<![\\\[])\^", pattern):
        raise UserError(f"the split pattern has {found[0]} in it, which tokenizers reads in another way: "
                        "train with a pattern without it, then export")


# What regex engines may take in different ways: ends of lines and of the text, runs of spaces, classes of characters.
HARD_TEXTS = ("ab\r\nab\n", " \n\n  ", "a  b\t\tc \u3000\xa0 d", "straße ٣٤٥ e\u0301 \u200d",
              "it'S 'll 'Ve'D 12345678 $^|,.;x", "\u2028\x0b\x0c\x85")


def tokenizer_json(tokenizer: RustBPETokenizer) -> str:
    """The content of `tokenizer.json`: what `tokenizers.Tokenizer.from_str` takes.

    Its ids are compared with ours on some twenty texts before it is given out.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    _check_portable(tokenizer.pattern)
    names = tokenizer.get_special_tokens()
    n = tokenizer.get_vocab_size() - len(names)
    ranks = {tokenizer.decode_bytes([i]): i for i in range(n)}
    character_of = [character for character, _ in sorted(byte_level_characters().items(), key=lambda item: item[1])]

    def shown(token: bytes) -> str:
        return "".join(character_of[b] for b in token)

    model = models.BPE(
        vocab={shown(token): i for token, i in ranks.items()},
        merges=[(shown(left), shown(right)) for left, right in merges_of(ranks)],
        ignore_merges=True,  # as in tiktoken, a word that is a token is taken whole, whatever the merges make of it
    )
    made = Tokenizer(model)
    try:
        pattern = Regex(tokenizer.pattern)
    except Exception as e:  # the library's own, without a class
        raise UserError(f"tokenizers cannot read the split pattern: {e}") from e
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    # Not in the model's vocabulary: there a whole word could become one (`split_special_tokens`).
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    for name in names:
        if made.token_to_id(name) != tokenizer.encode_special(name):
            raise UserError(f"the special token {name} cannot keep its id {tokenizer.encode_special(name)} in a "
                            "tokenizer.json: special tokens follow the other ids and have names of their own")
    for text in (*SAMPLES.values(), *HARD_TEXTS):
        if made.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise UserError(f"tokenizers reads the split pattern in another way: {text[:40]!r} gets other ids there. "
                            "Train with a pattern of nanochat.tokenizer.split_pattern, then export")
    return made.to_str()


def tokenizer_config(tokenizer: RustBPETokenizer) -> dict:
    """The content of `tokenizer_config.json`. There is no `model_max_length`: that belongs to a model."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        # Collators leave the padding token out of the loss. <|assistant_end|> has to be learned, <|bos|> never is.
        "pad_token": "<|bos|>",
        "additional_special_tokens": tokenizer.get_special_tokens(),  # both transformers 4 and 5 know this name
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def chat_template(tokenizer: RustBPETokenizer) -> str:
    """The content of `chat_template.jinja`, which refuses the names of this tokenizer's special tokens in contents."""
    return CHAT_TEMPLATE.replace("SPECIAL_NAMES", json.dumps(tokenizer.get_special_tokens()), 1)


def export_tokenizer(tokenizer: RustBPETokenizer, directory: str | Path) -> None:
    """Write the three files into `directory`, which is made if it is not there."""
    directory = Path(directory)
    if (directory / RANKS_FILE).exists():
        # both formats have a tokenizer_config.json
        raise UserError(f"{directory} holds a tokenizer in our own format, which would be overwritten: name another")
    missing = [name for name in SPECIAL_TOKENS if name not in tokenizer.get_special_tokens()]
    if missing:
        raise UserError(f"the tokenizer lacks the special tokens of conversations: {', '.join(missing)}")
    files = {
        TOKENIZER_FILE: tokenizer_json(tokenizer),
        TEMPLATE_FILE: chat_template(tokenizer),
        CONFIG_FILE: json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False) + "\n",
    }
    for name, content in files.items():
        atomic_write(directory / name, content)


# ------------------------------------------------------------------------------------------------- the command line


@dataclass
class Config:
    """Export a tokenizer for Hugging Face tokenizers and transformers."""

    out: str = ""
    """The folder to write tokenizer.json, tokenizer_config.json and chat_template.jinja into."""
    tokenizer: str = ""
    """The folder of the tokenizer to export; empty: the one that tok_train left under the base directory."""


def main(config: Config) -> None:
    if not config.out:
        raise UserError("--out=FOLDER is missing: where should the files go?")
    tokenizer = RustBPETokenizer.from_directory(config.tokenizer) if config.tokenizer else get_tokenizer()
    export_tokenizer(tokenizer, config.out)
    print0(f"{config.out}: {TOKENIZER_FILE}, {CONFIG_FILE}, {TEMPLATE_FILE} "
           f"({tokenizer.get_vocab_size():,} ids; AutoTokenizer.from_pretrained({config.out!r}) loads them)")


if __name__ == "__main__":
    configurator.main(main, Config)
