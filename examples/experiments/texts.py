"""Prepares long free texts of five kinds beside fiction (books.py), one file each.

    python examples/experiments/texts.py CLONES TEXTS

SOURCES names repositories on GitHub with their commits; each is fetched into CLONES
(that commit alone) unless it is there as CLONES/OWNER+NAME. A source's files, in order
of their names and as plain text, are packed to documents of 150,000 characters or more,
at most 12 a source: KIND/SOURCE__TITLE.txt. Names that begin with one of VALIDATION or
HELD_OUT are not trained on, nor is another text of that project, author or series.

Licences. Public domain or CC0: truthcommission, peps, modernization, budgeting, nist,
apollo, irancontra, britannica1911, factbook, jargon. Crown copyright, free to use with
attribution (OGL 3): leveson, posthorizon, covidinquiry. MIT, BSD, Apache, Unlicense or
Unicode: all code but git, and rustrfcs, swiftevolution, keps, rustbook, sqlalchemy,
swiftbook, prometheus, numpy, jekyll, pytest, bitcoin, messageformat. CC BY: novaspecs,
mueller, webpack, anthropology; CC BY-SA: wstg, redis, changelog, ethereum, wikipedia,
algorithms, planetmath; CC BY-NC-SA: progit, the other text books and the collection of
central banks' minutes. GPL: git, ansible, perl, klipper, pandoc, talkpython; AGPL:
securedrop. Public, no licence stated: tc39, webassembly, httpwg, quicwg, graphql, and
the collection of supremecourt (itself public domain). The texts are never shipped.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

LENGTH, SHORTEST, DOCUMENTS = 150_000, 60_000, 12
READ = 12_000_000  # bytes of a source at most, of many files every nth

# use, kind, source, repository, commit, pattern of its files, how they are converted
SOURCES = r"""
train reports leveson robertsharp/levesonhtml a190da14d3d42679c6b9b1594b8cfe3ffdd36f69 levesonphp/[A-L]/chapter\d+/content.php tags
train reports bankofengland gtfintechlab/WorldCentralBanks 912be0d3bd384639f65393acb2cad44709c72a6e cleaned_data/bank_of_england/.*\.md markdown
train reports federalreserve gtfintechlab/WorldCentralBanks 912be0d3bd384639f65393acb2cad44709c72a6e cleaned_data/federal_reserve_system/.*\.txt same
train reports ecb gtfintechlab/WorldCentralBanks 912be0d3bd384639f65393acb2cad44709c72a6e cleaned_data/european_central_bank/.*\.txt same
train reports truthcommission nevillepark/trc f65bae1be6b136f610e334c531d3f2375113b4a6 txt/.*\.txt same
train reports peps python/peps ba4deeb7969588d937da609008d05bb83a47b1ab peps/pep-\d+\.rst rst
train reports rustrfcs rust-lang/rfcs 354518a8c9025f40be6f730452c1bfe71a12dc22 text/\d+.*\.md markdown
train reports swiftevolution swiftlang/swift-evolution 0105e139a22938561c700cfbb89ddc3ebe402f0c proposals/\d+.*\.md markdown
train reports keps kubernetes/enhancements 64765b4b02389318f2113119dd9e491479f978a0 keps/sig-.*/README\.md markdown
train reports novaspecs openstack/nova-specs 23297f93da97a7011eb7a19399c144f7ee45ccc6 specs/.*\.rst rst
validation reports modernization GSA/modernization 4ae53ce83a4add4620b8764343d5a4c393b5e0e4 pages/report/.*\.md markdown
validation reports budgeting 18F/technology-budgeting cb6d0b6188d634fc9f5197b5adacbf4a60f4dff3 handbook\.md markdown
held-out reports mueller iandennismiller/mueller-report 3aa16a20104f48623ce8e12c8502ecb1867a40f8 docs/mueller-report-vol-\d\.html tags
held-out reports posthorizon dracos/pohi ebbacaee48e46c498c233e35f7ea973965435475 report/volume-1/.*\.rst rst
held-out reports nist usnistgov/800-63-3 ce8ada6277a2948308d85b16a4c568874f7d5abb sp800-63(-3|[abc])/.*\.md markdown
train technical rustbook rust-lang/book 917544888a55e4da7109bdba8c88c893c0da70f4 src/.*\.md markdown
train technical git git/git 1a3e64c6c4a623626ff0687008732a8e007e2a1c Documentation/(git|user-manual|config/|technical/|howto/)[^/]*.*\.adoc asciidoc
train technical sqlalchemy sqlalchemy/sqlalchemy f35da7e2b9349a08b8de1f6bd3b07c8bf8616790 doc/build/(core|orm|dialects|tutorial|faq)/.*\.rst rst
train technical ansible ansible/ansible-documentation ef72400cc2f70f974ffbb30b63098b31dbd36b07 docs/docsite/rst/(?!porting|roadmap|images|locales|community).*\.rst rst
train technical swiftbook swiftlang/swift-book 29329996c4ec537de0b16e70609e2a6c4ecc2af7 TSPL\.docc/(LanguageGuide|ReferenceManual|GuidedTour)/.*\.md markdown
train technical prometheus prometheus/docs c105550aad07161f62d02e305ed09799ec6025fa docs/(?!specs).*\.md markdown
train technical numpy numpy/numpy 1f90bbb55e65e7de68921bc3f1a2d94492fdf689 doc/source/(building|dev|f2py|reference|user)/.*\.rst rst
train technical perl Perl/perl5 9a9d70c38f6051857c395092b58e79353ce9f3be pod/perl(?!.*delta|toc|api|uniprops|hist).*\.pod pod
train technical wstg OWASP/wstg 2fab1ade827ee2336f14b7c695014191b7e2f3e1 document/[04].*\.md markdown
train technical webpack webpack/webpack.js.org 9c0ce6f5e982c2efd3e97360a107a6343cf2c77b src/content/(?!blog|contribute).*\.mdx? markdown
train technical progit progit/progit2 55b541e9e6d747208a76a15d1f1e01463093f67b book/.*\.asc asciidoc
train technical jekyll jekyll/jekyll 202df571314ba1d18e9fccd81d12aaad4a703c38 docs/_docs/(?!history).*\.md markdown
validation technical pytest pytest-dev/pytest df87db7b0462fb764ef73fa00561adf8ad047572 doc/en/(how-to|reference|explanation|example|getting)[^/]*(/.*)?\.rst rst
validation technical securedrop freedomofpress/securedrop-docs 0a1e600494bf54aaef05598ca71de50e8c70a19b docs/.*\.rst rst
held-out technical klipper Klipper3d/klipper 84104bbbd7625d28b4eaaad83f4562972460ecd9 docs/(?!Config_Changes|Releases)[^/]*\.md markdown
held-out technical pandoc jgm/pandoc 0a9a2f261510322ee5a33a2a7facce54b8a718ec (MANUAL\.txt|doc/.*\.md) markdown
held-out technical redis redis/redis-doc 1044224477fceacc5af56a636b0a7495d19e533c docs/.*\.md markdown
train transcripts changelog thechangelog/transcripts 44a0e16c5919d332e05de481919fbfca90a2c90b (podcast|gotime|jsparty|practicalai|backstage|brainscience|founderstalk)/.*\.md markdown
train transcripts bitcoin bitcointranscripts/bitcointranscripts 52ccbbe25d18a1db9403526a8b8b3b0be9ff6959 (?!.*\.\w\w\.md|_index).*/.*\d.*\.md markdown
train transcripts tc39 tc39/notes d99353f99c748f97cfa980b1c9b03e7ade3ef930 meetings/20(1[6-9]|2\d)-\d\d/\w+-\d+\.md markdown
train transcripts ethereum ethereum/pm cea5a16928f6f233a038d237bb0706c3a6f7bc6f AllCoreDevs-(EL|CL)-Meetings/.*\.md markdown
train transcripts covidinquiry dracos/uk-covid19-inquiry 2a75adafddaebb8099d1bbbc64ead64a0106ff81 module-.*/\d{4}-.*\.rst rst
train transcripts supremecourt walkerdb/supreme_court_transcripts f8c155e23ed871118de6368bab02b0dcb7585eee oyez/cases/.*-t\d+\.json court
train transcripts webassembly WebAssembly/meetings ab60c7ce1baf5930837c31f2d3d5288a09f632c2 (main|gc|wasi|stack|simd|threads)/20\d\d/.*\.md markdown
train transcripts httpwg httpwg/wg-materials b371849996147df4698cea02cbffbe8a78eaa764 .*minutes.*\.(md|txt) markdown
train transcripts quicwg quicwg/wg-materials 20352f1f2aa1d9b68bc20649c8202e6ec167d550 .*minutes.*\.(md|txt) markdown
validation transcripts graphql graphql/graphql-wg 64ab2cc6b41d6604ff2519fe29ae796a19c09d82 notes/20\d\d/.*\.md markdown
validation transcripts messageformat unicode-org/message-format-wg 7ee93b83ca8947ade4260c8e7b7b613fc16f37dc meetings/20\d\d/.*\.md markdown
held-out transcripts irancontra rcchan/irancontra aaea041e29d33732ad3f1f6878a1584d521b8cee transcripts/.*\.php tags
held-out transcripts talkpython mikeckennedy/talk-python-transcripts df2de5c15d95d9a4baf79f72fd6e25fd4eaef589 transcripts/.*\.txt captions
held-out transcripts apollo Spacelog/Spacelog 4d3bfefd8aae9e341d379ddd3c2cf8793c8e3e7a missions/a\d+/transcripts/TEC radio
train encyclopedic wikipedia chinapedia/wikipedia.abstract.en 4f3e897da088cbe89a4f1d4cba3fa2e439c3721b Page/(?!List_|Timeline|\d).*\.md wikipedia
train encyclopedic astronomy openstax/osbooks-astronomy dff6acf8df597ceda73985308f838ed38417a606 modules/.*\.cnxml tags
train encyclopedic americanhistory openstax/osbooks-us-history c05b860a035ff59a2ca1fd44339ef86694e09b57 modules/.*\.cnxml tags
train encyclopedic worldhistory openstax/osbooks-world-history b2ddac6d5ab41847257c1484ee9271576d1a053e modules/.*\.cnxml tags
train encyclopedic sociology openstax/osbooks-introduction-sociology ab8839c5c5340cb4dffbc310699da450549deb20 modules/.*\.cnxml tags
train encyclopedic psychology openstax/osbooks-psychology de7e40c91813dabdc2875df9d0709fc4f46080bb modules/.*\.cnxml tags
train encyclopedic government openstax/osbooks-american-government a2677245241954039c7ebc996e82a8f3b0b4376f modules/.*\.cnxml tags
train encyclopedic philosophy openstax/osbooks-introduction-philosophy ec6340117385f06d8e094850bade8948fe7ba002 modules/.*\.cnxml tags
train encyclopedic anthropology openstax/osbooks-introduction-anthropology 418eedd9bef21ec1a6fa1b472c0d82c084e35c70 modules/.*\.cnxml tags
validation encyclopedic planetmath planetmath/11_Number_theory da34257fa8a961f4d6b8e289869901003a26dcf7 .*\.tex tex
validation encyclopedic algorithms cp-algorithms/cp-algorithms 861a9956d67cca912e02091f4cec4a6efe2022a0 src/[a-z_]+/.*\.md markdown
held-out encyclopedic jargon ghoulmann/rest-jargon-file ec5110b101907e545f1312eb86e43ba8e0022084 jargon-4.4.7-sphinx/source/.*\.rst rst
held-out encyclopedic britannica1911 ahaspel/britannica-edition ef3ecdd40a30a5693a6b516a7d0d38b3d44e9464 tests/snapshots/transform/.*\.body\.txt britannica
held-out encyclopedic factbook factbook/factbook.json 8662a8b17a784841ab4528631b04090eb2f183eb (africa|europe|south-america|south-asia|middle-east)/.*\.json factbook
train code werkzeug pallets/werkzeug 1b00618e787f40dfb21eba29caf8f8be7c8e1d93 src/.*\.py code
train code scrapy scrapy/scrapy 11079cb1c85b9e75a39a7269943c69d1a975d485 scrapy/.*\.py code
train code sqlalchemy sqlalchemy/sqlalchemy f35da7e2b9349a08b8de1f6bd3b07c8bf8616790 lib/sqlalchemy/(engine|orm|sql|dialects/sqlite)/.*\.py code
train code git git/git 1a3e64c6c4a623626ff0687008732a8e007e2a1c [a-z-]+\.c code
train code lua lua/lua 53b41d0cddd80bf33fdc631bdd32e3ba53842b89 [a-z]+\.[ch] code
train code leveldb google/leveldb 78a352f47ed6c1e9d750545e9b242289185b87e1 (db|table|util|include)/(?!.*_test\.cc).*\.(cc|h) code
train code gson google/gson 9835b6f90192f79cdf5300c528fc6212455fb6c1 gson/src/main/.*\.java code
train code caddy caddyserver/caddy 0cf03d32f7d99cf160d5375e8a40fbe3d910d515 (?!.*_test\.go).*\.go code
train code hugo gohugoio/hugo 7b5199fdeff7d7682e9f979f468d55bc7b67b934 (hugolib|resources|markup|parser|tpl)/(?!.*_test\.go).*\.go code
train code ripgrep BurntSushi/ripgrep 3fce3b5bb0236da2df6d99672afb8a719642eca7 crates/.*\.rs code
train code alacritty alacritty/alacritty bdb72b32eeb074e3a0b8559d8ccac458237474a3 alacritty(_terminal)?/src/.*\.rs code
train code axum tokio-rs/axum 3d78036dcac289d6c1d54934708acb6a5bd73686 axum[\w-]*/src/.*\.rs code
train code vue vuejs/core e2bede96134f757aad5c5b33ac9be055022dbfc8 packages/(?!.*(__tests__|\.spec\.)).*/src/.*\.ts code
train code jquery jquery/jquery 51eb576cca6ffce252dc152bf8e91d5230a0d887 src/.*\.js code
train code sinatra sinatra/sinatra cb22afd7902b566b6eaba6c4ea89739494a65d12 (lib|rack-protection/lib|sinatra-contrib/lib)/.*\.rb code
validation code tornado tornadoweb/tornado e530031405e2154654dedc4c84d5656b557ea310 tornado/[a-z]+\.py code
validation code jq jqlang/jq 579e6f76cffd7643ba4002a2c3618a5ea710589a src/(?!parser\.c|lexer\.c)[a-z_]+\.[ch] code
held-out code networkx networkx/networkx cfc6b79fc53f583aa15a79b2187ae30bd4f480ed networkx/(algorithms|classes|generators)/(?!.*tests/).*\.py code
held-out code libuv libuv/libuv 6179e7af87413396d5853a1c3722c8b5749336c8 (src|include)/.*\.[ch] code
held-out code fiber gofiber/fiber c344047e102861ac2b7f0259ea3dd3af4b03ad63 (?!.*_test\.go).*\.go code
"""  # noqa: E501
ROWS = [line.split() for line in SOURCES.strip().splitlines()]
VALIDATION = [f"{row[2]}__" for row in ROWS if row[0] == "validation"]
HELD_OUT = [f"{row[2]}__" for row in ROWS if row[0] == "held-out"]

# what is replaced, in turn, to leave what a reader reads; lines are "pattern -> by"
TAGS = r"""
(?s)<\?.*?\?>|<!--.*?-->|<(script|style|head|metadata|table|svg)\b.*?</\1> ->
(?i)\s*<br[^>]*>\s* -> \n
(?i)</?(p|div|h\d|li|ul|ol|para|title|item|section|list|tr)\b[^>]*> -> \n\n
<[^>]+> ->
\x20?\(\) ->
(_{2,}[\s\d.]*)+ -> [redacted]\x20
"""
MARKDOWN = r"""
(?s)\A.*\n#+ Meeting Notes\n ->
(?s)\A\ufeff?---\n.*?\n---\n|<!--.*?-->|\{[{%].*?[%}]\} ->
!\[[^]]*\](\([^)]*\)|\[[^]]*\])|(?m:^\[[^]]+\]:.*$|^-{3,}$|^\|.*$|^:::.*$) ->
\[([^][]*)\](\([^()\s]*\)|\[[^]]*\]) -> \1
</?(a|img|br|sup|sub|details|summary|div|span|p|center|figure)\b[^>]*> ->
"""
RULES = {
    "same": "",
    "tags": TAGS,
    "markdown": MARKDOWN,
    "wikipedia": MARKDOWN
    + r"""
(?s)\n(References|Notes|See also|External links|Footnotes)\s*\n.* ->
\A[^[\n]*\]\]|\[\d+\]|(?m:^(\[\[|''|\|).*$|^[-+=| ]{10,}$) ->
""",
    "rst": r"""
:[\w:+-]+:`[~!]?(?:_\w+\.)?([^`<]+?)( *<[^`]*>)?` -> \1
`([^`<]+?) *<[^`]*>`_+ -> \1
(?m)^( *)\.\. (\w+)(-block)?:: -> \1\2:
""",
    "asciidoc": r"""
(?m)^(ifn?def|endif|ifeval|include|image)::.*$|^:[\w-]+:.*$|^//.*$|^\[.*\]$ ->
(?s)\(\(\(.*?\)\)\) ->
(?:link|linkgit|xref):([\w.-]+)\[(\d)\] -> \1(\2)
""",
    "pod": r"""
(?m)^=(for|begin|encoding|pod|cut|over|back)\b.*\n|^=(head\d|item)\x20* ->
\b[BCFISL](<<+\s(.*?)\s>+>|<(?:[^<>|]*\|(?=\w+:))?([^<>|]*)(\|[^<>]*)?>) -> \2\3
\b[BCFISL]<([^<>|]*)(\|[^<>]*)?>|\b[XZ]<[^<>]*> -> \1
E<gt> -> >
E<lt> -> <
""",
    "tex": r"""
(?s)\A.*?\\pmtitle\{(.*?)\}\n.*?\\begin\{document\} -> \1\n\n
(?<!\\)%.*|\\end\{document\} ->
\\(label|index|PMlinkname|bibitem|begin|end)\{[^{}]*\}|\\item\b ->
(?m)^.*&.*&.*$|^(?=.{40})[^A-Za-z\n]*$ ->
\\(?:text\w\w|emph|(?:sub)*section\*?|PMlink\w*)\{([^{}]*)\} -> \1
\{\\(?:em|it|bf|sc)\s([^{}]*)\} -> \1
\\([&%$#_\x20\\]) -> \1
``|'' -> "
""",
    "britannica": r"""
(?s)«TABLE.*?«/TABLE»|«FN.*?«/FN»|\{\{.*?\}\} ->
«P» -> \n\n
«[^»]*»|</?su[bp]> ->
""",
    "captions": r"""
(?m)^\d\d:\d\d:\d\d\x20 ->
\n\n -> \x20
""",
    "radio": r"""
(?m)^(\[[-\d:]+\]|_\w+\x20?:.*)\n|\[\w+:([^]|]*\|)?(?=[^]|]*\])|(?<=\w)\] ->
\n\x20{3,} -> \x20
""",
    "code": r"""
\A\s*/\*(?=(?:[^*]|\*(?!/))*(?:opyright|icen[sc]e))(?s:.*?)\*/ ->
\A(?=(?:(?://|\#).*\n)*?.*(?:opyright|icen[sc]e))((?://|\#).*\n)+ ->
""",
}


def visible(text: str) -> str:
    """reStructuredText without the directives that are not for readers."""
    kept, hidden = [], None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if hidden is not None and (not line.strip() or indent > hidden):
            continue
        directive = re.match(r" *\.\. (?!code|note|warning|tip|important)", line)
        hidden = indent if directive else None
        if not directive and not re.match(r" *:[\w-]+:( |$)| *[+|][-=+| ]", line):
            kept.append(line)
    return "\n".join(kept)


def country(node: dict | str, name: str = "") -> str:
    if not isinstance(node, dict):
        return f"{name}: {node}"
    told = [f"{name}: {node['text']}" if "text" in node else f"<p>{name}"]
    return "\n".join(told + [country(node[key], key) for key in node if key != "text"])


def argument(case: dict) -> str:
    case, told = case["transcript"] or {"title": "", "sections": []}, []
    for turn in (turn for section in case["sections"] for turn in section["turns"]):
        name = (turn["speaker"] or {}).get("name", "Unidentified speaker")
        told.append(
            f"{name}: " + " ".join(part["text"] for part in turn["text_blocks"])
        )
    return "\n\n".join([case["title"] or "", *told])


def converted(text: str, how: str) -> str:
    if how == "court":
        text, how = argument(json.loads(text)), "same"
    if how == "factbook":
        text, how = country(json.loads(text)), "tags"
    if how == "rst":
        text = visible(text)
    for rule in filter(None, RULES[how].splitlines()):
        pattern, _, by = rule.partition(" ->")
        by = by.removeprefix(" ").replace("\\x20", " ")
        for _ in range(3 if how in ("pod", "tex") else 1):
            text = re.sub(pattern, by, text)
    if how in ("tags", "britannica"):
        text = html.unescape(text)
    return re.sub(r"\n\s*\n\s*\n+", "\n\n", text.replace("\r", "")).strip()


def files(clone: Path, commit: str, pattern: str, smallest: int):
    """The names and texts of a commit's files, in natural order."""

    def git(*args, **more):
        command = ["git", "-C", clone, *args]
        return subprocess.run(command, stdout=-1, check=True, **more).stdout

    found = []
    for line in git("ls-tree", "-rlz", commit).decode().split("\0")[:-1]:
        (mode, _, blob, size), name = line.split("\t")[0].split(), line.split("\t")[1]
        if mode[:3] == "100" and re.fullmatch(pattern, name) and int(size) > smallest:
            parts = re.split(r"(\d+)", name)
            order = [int(part) if part.isdigit() else part for part in parts]
            found.append((order, name, blob, int(size)))
    found = sorted(found)[:: max(1, sum(file[3] for file in found) // READ)]
    blobs = "\n".join(file[2] for file in found)
    data, end = git("cat-file", "--batch", input=blobs.encode()), 0
    for _, name, _, size in found:
        start = data.index(b"\n", end) + 1
        end = start + size + 1
        yield name, data[start : start + size].decode("utf-8", "replace")


if __name__ == "__main__":
    clones, out = map(Path, sys.argv[1:])
    for _, kind, source, repository, commit, pattern, how in ROWS:
        clone = clones / repository.replace("/", "+")
        if not clone.exists():
            subprocess.run(["git", "init", "-q", "--bare", clone], check=True)
            url = f"https://github.com/{repository}"
            fetch = [
                "git",
                "-C",
                str(clone),
                "fetch",
                "-q",
                "--depth",
                "1",
                url,
                commit,
            ]
            subprocess.run(fetch, check=True)
        documents, title, text = [], "", ""
        smallest = 30_000 if how == "wikipedia" else 0
        for name, content in files(clone, commit, pattern, smallest):
            title = title or re.sub(r"[^A-Za-z0-9]+", "-", name.rsplit(".", 1)[0])[-60:]
            if how in ("code", "wikipedia"):
                head = name if how == "code" else Path(name).stem.replace("_", " ")
                text += f"==== {head} ====\n\n"
            text += converted(content, how) + "\n\n\n"
            while len(text) >= LENGTH:
                long = len(text) > 2.5 * LENGTH
                cut = text.find("\n\n", LENGTH) if long else len(text)
                documents.append((title, text[:cut]))
                title, text = title if long else "", text[cut:]
        documents += [(title, text)] * (len(text) >= SHORTEST)
        count = min(len(documents), DOCUMENTS)  # evenly spread
        for i in range(count):
            title, text = documents[i * len(documents) // count]
            target = out / kind / f"{source}__{i:02}-{title.strip('-')}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.strip() + "\n", "utf-8")
            print(len(text), target)
