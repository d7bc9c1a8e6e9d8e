"""The text of a Metal kernel as C++: attributes, address spaces, vectors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import MetalError

TOKEN = re.compile(
    r"""\s+ | ^\#[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'
    | \.?\d(?:[eEpP][+-]|[\w.'])* | [A-Za-z_]\w* | :: | -> | .""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
SCALARS = "bool char uchar short ushort int uint long ulong half float bfloat".split()
LITERAL = re.compile(r"([\d.]+(?:[eE][+-]?\d+)?)(h|bf)")
VECTORS = {f"{scalar}{n}" for scalar in SCALARS for n in (2, 3, 4)}
MAX_VARIABLES = 64  # as in the runtime

# What the kernel's text has in place of its address spaces.
WITHOUT_ADDRESS_SPACES = {"device": "", "thread": "", "constant": "const"}


@dataclass(frozen=True)
class Signature:
    """The kernel in a text that MLX has written.

    Args:
        name (str): the kernel's name.
        function (str): the function to call, with template arguments if it has any.
        parameters (tuple): type, name and attribute of each.
    """

    name: str
    function: str
    parameters: tuple[tuple[str, str, str], ...]

    @property
    def buffers(self) -> list[str]:
        """Names of the buffers, in order."""
        return [name for _, name, at in self.parameters if at.startswith("buffer(")]


def signature(text: str) -> Signature:
    """Reads the kernel's declaration."""
    kernel = re.search(r"^\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{$", text, re.M | re.S)
    if not kernel:
        raise MetalError(f"no kernel in:\n{text}")
    name, parameters = kernel.groups()
    instance = re.search(rf"^template .* decltype\(({name}<.*>)\) ", text, re.M)
    function = instance[1] if instance else name
    found = re.findall(r"^ *(.+?) *(\w+) \[\[(\S+)\]\],?$", parameters, re.M)
    return Signature(name, function, tuple(found))


def entry(kernel: Signature) -> str:
    """A function without parameters that calls the kernel for the running thread."""
    arguments = []
    for type_, name, attribute in kernel.parameters:
        if index := re.fullmatch(r"buffer\((\d+)\)", attribute):
            type_ = type_.replace("constant ", "").replace("device ", "")
            pointer = f"({type_[:-1]}*)host::current->buffers[{index[1]}]"
            arguments.append(f"*{pointer}" if type_.endswith("&") else pointer)
        elif type_ == "uint3":
            arguments.append(f"host_uint3(host::current->{name})")
        else:
            arguments.append(f"host::current->{name}")
    return (
        'extern "C" __attribute__((visibility("default"))) void host_kernel() {\n'
        f"  {kernel.function}({', '.join(arguments)});\n}}\n"
    )


def shared_variable(type_: str, name: str, dimensions: str, index: int) -> str:
    """Declares a threadgroup variable that the runtime has allocated."""
    if index >= MAX_VARIABLES:
        raise MetalError(f"more than {MAX_VARIABLES} threadgroup variables")
    return (
        f"typedef {type_} host_{name}{dimensions}; host_{name}& {name} = "
        f'host_threadgroup<host_{name}>({index}, "{name}");'
    )


def rewrite(
    text: str,
    spaces: Mapping[str, str] = WITHOUT_ADDRESS_SPACES,
    variable: Callable[[str, str, str, int], str] = shared_variable,
) -> str:
    """Rewrites preprocessed text; every line keeps its number.

    Args:
        text (str): Metal.
        spaces (Mapping): what to write for an address space; ``threadgroup`` is nothing
            if it is not among them.
        variable (Callable): declares a threadgroup variable, given its type, name,
            dimensions and number.
    """
    return _Rewriter(text).rewrite({"threadgroup": "", **spaces}, variable)


class _Rewriter:
    def __init__(self, text: str):
        self.tokens = TOKEN.findall(text)
        # Where tokens are that are neither space nor a line's number.
        self.code = [
            i for i, t in enumerate(self.tokens) if not t.isspace() and t[0] != "#"
        ]
        self.variables = 0

    def word(self, k: int) -> str:
        return self.tokens[self.code[k]] if 0 <= k < len(self.code) else ""

    def set(self, k: int, text: str) -> None:
        self.tokens[self.code[k]] = text

    def text(self, start: int, end: int) -> str:
        """The words from ``start`` up to ``end``, exclusive."""
        return " ".join(self.word(k) for k in range(start, end))

    def match(self, k: int, opening: str, closing: str) -> int:
        """Where the bracket that opens at ``k`` closes."""
        depth = 0
        for i in range(k, len(self.code)):
            depth += (self.word(i) == opening) - (self.word(i) == closing)
            if depth == 0:
                return i
        raise MetalError(f"{opening} without {closing}")

    def rewrite(self, spaces: Mapping[str, str], variable: Callable) -> str:
        self.drop_attributes()
        k = 0
        while k < len(self.code):
            word = self.word(k)
            if word == "threadgroup" and not self.is_pointee(k):
                k = self.declare(k, variable)
                continue
            if word in spaces:
                self.set(k, spaces[word])
            elif literal := LITERAL.fullmatch(word):
                type_ = "half" if literal[2] == "h" else "bfloat"
                self.set(k, f"{type_}({literal[1]})")
            elif word in VECTORS and self.word(k + 1) == "(":
                self.set(k, f"host_make<{word}>")
            elif word == "vec" and self.word(k + 1) == "<":
                end = self.match(k + 1, "<", ">")
                if self.word(end + 1) == "(":
                    first = k - 2 if self.word(k - 1) == "::" else k
                    self.set(first, f"host_make<{self.word(first)}")
                    self.set(end, ">>")
            k += 1
        return "".join(self.tokens)

    def drop_attributes(self) -> None:
        k = 0
        while k < len(self.code):
            if self.word(k) == self.word(k + 1) == "[":
                end = self.match(k, "[", "]")
                for i in range(k, end + 1):
                    self.set(i, "")
                k = end
            k += 1
        self.code = [i for i in self.code if self.tokens[i]]

    def is_pointee(self, k: int) -> bool:
        """Does ``threadgroup`` say what a pointer or reference points to?"""
        angles = 0
        for i in range(k + 1, len(self.code)):
            word = self.word(i)
            angles += (word == "<") - (word == ">")
            if angles < 0 or (angles == 0 and word in {";", "=", "[", "{", ")", ","}):
                return False
            if angles == 0 and word in {"*", "&"}:
                return True
        return False

    def declare(self, k: int, variable: Callable) -> int:
        """Rewrites ``threadgroup T a[N], b[M];``; returns where it ends."""
        end = k
        while self.word(end) not in {";", ""}:
            end += 1
        # A variable that were mistaken for something else would be private to a thread.
        if self.word(k - 1) not in {";", "{", "}"} or self.word(end) != ";":
            near = self.text(max(0, k - 8), k + 12)
            raise MetalError(f"which threadgroup memory is meant in: {near}")
        parts = self.split(k + 1, end)
        names = [start for start, _ in parts]
        while self.word(names[0] + 1) not in {"[", "=", ",", ";"}:
            names[0] = self.after(names[0])
        type_ = self.text(k + 1, names[0])
        declarations = []
        for i, (_, stop) in zip(names, parts, strict=True):
            name, dimensions = self.word(i), self.text(i + 1, stop)
            if "=" in dimensions:
                raise MetalError(f"threadgroup variable {name} cannot be initialised")
            declarations.append(variable(type_, name, dimensions, self.variables))
            self.variables += 1
        for i in range(k, end + 1):
            self.set(i, "")
        self.set(k, " ".join(declarations))
        self.set(end, ";")  # after which another declaration may follow
        return end + 1

    def after(self, k: int) -> int:
        """The word after ``k``, or after what ``k`` and the next word open."""
        if self.word(k + 1) == "<":
            return self.match(k + 1, "<", ">") + 1
        return k + 1

    def split(self, k: int, end: int) -> list[tuple[int, int]]:
        """Where the parts between commas start and stop."""
        brackets = {"[": "]", "(": ")", "{": "}", "<": ">"}
        parts, start = [], k
        while k < end:
            if closing := brackets.get(self.word(k)):
                k = self.match(k, self.word(k), closing)
            elif self.word(k) == ",":
                parts.append((start, k))
                start = k + 1
            k += 1
        return [*parts, (start, end)]
