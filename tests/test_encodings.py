"""Text in the encodings that people have, told or refused."""

import gzip
import os
import random
import sys

import pytest

from allmem_mlx.documents import encodings
from allmem_mlx.documents.encodings import Decoder, decode, find_encoding
from allmem_mlx.errors import AllMemError, MissingLibrary

TEXTS = {
    "French": "Il était une fois, dans une forêt profonde, une petite fille aimée. "
    "« Où allez-vous ? » demanda le loup ; les élèves étaient déjà à l’école. ",
    "German": "Über den Dächern der Stadt hörte man die Glocken läuten. Die Straße war "
    "naß, und die Mädchen trugen große Körbe mit Äpfeln – „schön“, sagte er. ",
    "Spanish": "El niño preguntó: ¿dónde está el corazón de la montaña? Mañana, dijo "
    "el señor, iremos allí según el día. ",
    "English": "The “curly” quotes — and the dash — of a Windows text aren’t ASCII. ",
    "Polish": "Chrząszcz brzmi w trzcinie w Szczebrzeszynie. Żółta łódź płynęła wśród "
    "gęstej mgły, a źrebię śniło o świcie. ",
    "Russian": "Она сказала: нет, я не пойду туда сегодня. Все счастливые семьи похожи "
    "друг на друга, каждая несчастливая семья несчастлива по-своему. ",
    "Greek": "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Καλημέρα, είπε ο "
    "δάσκαλος στους μαθητές του. ",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。",
    "Chinese": "第一章从前有一个人，他说：你好。天下大势，分久必合，合久必分。"
    "周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。",
    "Korean": "나는 고양이로소이다. 이름은 아직 없다. 어디서 태어났는지 도무지 짐작이 "
    "가지 않는다. 어두컴컴하고 축축한 곳에서 야옹야옹 울던 것만은 기억한다. ",
}
CASES = [
    ("French", "cp1252", "Windows-1252"),
    ("German", "cp1252", "Windows-1252"),
    ("Spanish", "latin-1", "Windows-1252"),
    ("English", "cp1252", "Windows-1252"),
    ("Polish", "cp1250", "Windows-1250"),
    ("Polish", "iso8859-2", "ISO-8859-2"),
    ("Russian", "koi8-r", "KOI8-R"),
    ("Russian", "cp1251", "Windows-1251"),
    ("Greek", "cp1253", "Windows-1253"),
    ("Japanese", "shift_jis", "Shift-JIS"),
    ("Japanese", "euc_jp", "EUC-JP"),
    ("Japanese", "iso2022_jp", "ISO-2022-JP"),
    ("Chinese", "gb18030", "GB18030"),
    ("Korean", "euc_kr", "CP949"),
    ("French", "utf-16-le", "UTF-16-LE"),
    ("Russian", "utf-16-be", "UTF-16-BE"),
    ("Japanese", "utf-16-be", "UTF-16-BE"),
    ("Japanese", "utf-16-le", "UTF-16-LE"),
    ("Chinese", "utf-16-le", "UTF-16-LE"),
]


@pytest.mark.parametrize("length", [24, 60, 4000])
@pytest.mark.parametrize("language, encoding, title", CASES)
def test_encodings_are_told(language, encoding, title, length):
    text = (TEXTS[language] * 60)[:length]
    data = text.encode(encoding, "ignore")
    text = data.decode(encoding)
    decoded, notes = decode(data, "'book'")
    assert decoded == text
    assert len(notes) == 1 and notes[0].startswith("'book' is read as ")
    if length == 4000:
        assert notes == [f"'book' is read as {title}"]


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_needs_no_guess_is_not_said(language, encoding):
    text = TEXTS[language]
    for end in (len(text), 1, 7):
        assert decode(text[:end].encode(encoding), "'book'") == (text[:end], [])


def test_a_sample_may_end_in_the_middle_of_a_character():
    for language, encoding, _ in CASES:
        data = (TEXTS[language] * 9).encode(encoding, "ignore")
        name, _ = find_encoding(data, "'x'")
        for cut in range(1, 4):
            assert find_encoding(data[:-cut], "'x'")[0] == name
    for cut in range(5):
        data = ("word " * 9 + "👩").encode()
        assert find_encoding(data[: len(data) - cut], "'x'") == ("utf-8", [])


REFUSED = {
    "too short": b"caf\xe9?",
    "shorter": b"caf\xe9",
    "no word": b"\xe9123456789",
    "half a character": b"n\xc3",
    "a program": b"\x7fELF\0\0\1",
    "all bytes": bytes(range(256)) * 10,
    "noise": random.Random(0).randbytes(5000),
    "packed": gzip.compress(b"hello world" * 100, mtime=0),
    "many NULs": b"a\0b",
    "NULs": bytes(100),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_told_is_refused(data):
    with pytest.raises(AllMemError, match="'x' is ") as error:
        decode(data, "'x'")
    assert len(str(error.value).splitlines()) == 1
    assert "UTF-8" in str(error.value)


@pytest.mark.skipif(not os.path.exists("/bin/ls"), reason="needs a program")
def test_a_program_is_refused():
    with open("/bin/ls", "rb") as file:
        data = file.read(encodings.SAMPLE)
    for part in (data, data.replace(b"\0", b""), data[:1000], data[5000:9000]):
        with pytest.raises(AllMemError):
            decode(part, "'x'")


def test_colours_of_a_terminal_are_no_shift():
    for text in ("\x1b(B\x1b[31mred\x1b[0m", "\x1b[1m été \x1b$ \x1b(B"):
        assert decode(text.encode(), "'x'") == (text, [])


def test_a_few_words_among_much_ascii():
    ascii_lines = b"2026-01-01 10:00:00 host app: served\n" * 1500
    for language, encoding, _ in CASES:
        if "utf-16" not in encoding and "2022" not in encoding:
            words = TEXTS[language][:60]
            data = ascii_lines + words.encode(encoding, "ignore") + b"\n" + ascii_lines
            text, notes = decode(data, "'x'")
            assert words.encode(encoding, "ignore").decode(encoding) in text, encoding
            assert len(notes) == 1 and " is read as " in notes[0]


def test_replacement_characters_that_stand_in_a_text():
    for text in ("\ufffd", "a\ufffdb", "one \ufffd\ufffd two " * 99):
        assert find_encoding(text.encode(), "'x'") == ("utf-8", [])


def test_broken_utf8():
    """Where most of it is valid, and where nearly all is ASCII."""
    text, notes = decode("Où est l’été ?".encode() + b"\xff\xfe", "'x'")
    assert text == "Où est l’été ?\ufffd\ufffd"
    assert notes == ["'x': 2 characters could not be decoded, and became U+FFFD"]
    text, notes = decode(b"a line of a log\n" * 99 + b"\x81\xfe", "'x'")
    assert text.endswith("log\n\ufffd\ufffd") and len(notes) == 1


def test_nuls():
    text, notes = decode(b"one\0two\n" * 3 + b"three " * 99, "'x'")
    assert text.startswith("onetwo\nonetwo\n")
    assert notes == ["'x': 3 NUL characters left out"]
    text, notes = decode(
        "élan\0".encode("cp1252") + b"l'\xe9t\xe9 est l\xe0 " * 9, "'x'"
    )
    assert text.startswith("élanl'été est là") and len(notes) == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp932", "gb18030"])
def test_pieces_of_any_size(encoding):
    text = "one\r\ntwo\rthree 第一章\r\n\rend\r"
    data = text.encode(encoding)
    for size in (1, 2, 3, 100):
        decoder = Decoder(encoding)
        blocks = [data[i : i + size] for i in range(0, len(data), size)]
        decoded = "".join(map(decoder.decode, blocks)) + decoder.decode(b"", True)
        assert decoded == text.replace("\r\n", "\n").replace("\r", "\n")
        assert not decoder.warnings


@pytest.mark.parametrize(
    "text, sure",
    [
        ("Qui a été à l'école ?", True),
        ("OÙ EST LE CAFÉ DE LA GARE ET LA FORÊT ?", False),
        ("Straße?", False),
    ],
)
def test_no_word_is_of_two_alphabets(text, sure):
    """What chardet is the surest of is Hebrew, or Arabic, in the middle of words."""
    try:
        decoded, notes = decode(text.encode("cp1252"), "'x'")
    except AllMemError:
        assert not sure
    else:
        assert decoded == text and notes == ["'x' is read as Windows-1252"]


def test_without_chardet(monkeypatch):
    monkeypatch.setitem(sys.modules, "chardet", None)
    assert decode("été".encode(), "'x'") == ("été", [])
    with pytest.raises(MissingLibrary, match=r"allmem-mlx\[documents\]"):
        decode(TEXTS["French"].encode("cp1252"), "'x'")
    text, notes = decode(b"a line of a log\n" * 99 + b"\xe9", "'x'")
    assert text.endswith("\ufffd") and len(notes) == 1
