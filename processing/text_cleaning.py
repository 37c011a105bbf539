"""Cleans utterances as ArtEmis' preprocessing for its neural networks does.

    clean_texts(["It's a man's hat; I don't like that 'peacful' red!"])
    # ["it is a man 's hat i do not like that peaceful red"]

In this order: lower case; a word in single quotation marks loses them; contractions are written out; punctuation
becomes a space; the text is split as by NLTK's Treebank tokenizer ("man 's"; double quotation marks become `` and '');
a misspelled token becomes the most frequent word of SymSpell's dictionary at edit distance 1; single spaces.

Two things differ from ArtEmis. Typographic apostrophes and quotation marks count as plain ones. And the words that are
never changed are not the 400,000 of GloVe, but the following:
    - the words of SymSpell's dictionary, and those of lemminflect: the dictionary has "colours", but not "colors";
    - contractions without their apostrophe, such as "dont";
    - tokens of three letters or fewer, because these are one edit away from too many words ("tv" from "to").
So some rare names become words. Whoever needs ArtEmis' own result reads its column `utterance_spelled`.

Each text is cleaned on its own, so that training data, references and the judge's data agree. Cleaning a second time
changes nothing.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files


# Regular expressions count the underscore as a letter, so it becomes a space first.
PLAIN_SIGNS = str.maketrans("‘’´“”_", "'''\"\" ")
PUNCTUATION = str.maketrans(dict.fromkeys(r".?!,:;/\-~*=[]–—{}$^@|%#<>", " "))
CONTRACTIONS = {
    r"\bain't\b": "is not",
    r"\bcan't\b": "cannot",
    r"\bwon't\b": "will not",
    r"\bshan't\b": "shall not",
    r"\blet's\b": "let us",
    r"\bi'm\b": "i am",
    r"'re\b": " are",
    r"'ve\b": " have",
    r"'ll\b": " will",
    r"'d\b": " had",  # ArtEmis, too, does not ask whether "would" is meant
    r"(?<=\w)n't\b": " not",
    r"\b(he|she|it|this|that|there|here|what|who|where|when|why|how)'s\b": r"\1 is",
}
# The rules of NLTK's tokenizer that matter without this punctuation.
TOKENS = {
    r'(^|[ (])"': r"\1 `` ",
    r'"': " '' ",
    r"([()&«»„]|`+|'')": r" \1 ",
    r"(?<!\w)'(?!(?:re|ve|ll|[mtsdn])\b)(?=\w)": "' ",
    r"(?<=[^' ])('[smd]?)(?= |$)": r" \1",
    r"\b(can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b))": r"\1 ",
}


def clean_texts(texts: Iterable[str]) -> list[str]:
    """Cleans texts. One that has only punctuation becomes empty.

    Raises:
        ValueError: symspellpy is missing. The message names the command that installs it.
    """
    correct = spelling_corrector()
    return [" ".join(map(correct, split_tokens(text))) for text in texts]


def split_tokens(text: str) -> list[str]:
    """Returns the tokens of a text before their spelling is corrected."""
    text = " ".join(text.lower().translate(PLAIN_SIGNS).split())
    if "'" in text:
        text = re.sub(r"'(\w+)'", r" \1 ", text)
        for contraction, words in CONTRACTIONS.items():
            text = re.sub(contraction, words, text)
    text = " ".join(text.translate(PUNCTUATION).split())
    for token, parts in TOKENS.items():
        text = re.sub(token, parts, text)
    return text.split()


@cache
def spelling_corrector() -> Callable[[str], str]:
    """Returns a function that corrects a lower-case token, and remembers the tokens that it has seen."""
    try:
        from symspellpy import SymSpell, Verbosity
    except ImportError as error:
        raise ValueError("--clean_text needs symspellpy: pip install -e '.[clean]'") from error
    from lemminflect import getAllLemmas

    speller = SymSpell(max_dictionary_edit_distance=1)
    speller.load_dictionary(str(files("symspellpy") / "frequency_dictionary_en_82_765.txt"), 0, 1, encoding="utf-8")
    # A correction must be one token.
    several = [word for word in speller.words if split_tokens(word) != [word]]
    for word in several:
        speller.delete_dictionary_entry(word)
    known = {*speller.words, *(word.replace("'", "") for word in several)}

    @cache
    def correct(token: str) -> str:
        if token in known or not re.fullmatch("[a-z]{4,}", token) or getAllLemmas(token):
            return token
        found = speller.lookup(token, Verbosity.TOP, max_edit_distance=1)
        return found[0].term if found else token

    return correct
