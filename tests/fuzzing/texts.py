"""YAML and JSON that nobody writes: values of other types, texts of other forms, and bytes changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

import yaml

from fuzzing.pickles import mutated

SCALARS = (
    *("", "~", "true", "off", "0", "-1", "7", "1e999", "-1e999", ".inf", "-.inf", ".nan", "0x7fffffffffffffff", "0o17"),
    *("9" * 30, "9" * 400, "1_0", "190:20:30", "1" + ":59" * 30, "2024-02-30", "2024-01-01T25:00:00Z", "0000-00-00"),
    *("2001-12-14 21:59:43.10 -99:99", "!!int x", "!!int ''", "!!float ''", "!!bool x", "!!timestamp 1", "!!null x"),
    *(
        "!!binary =",
        "!!binary x",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!python/object/apply:os.system [ls]",
    ),
    *(
        "!!python/name:os.system",
        "!x y",
        "!<tag:x> y",
        "!!str 5",
        "*a",
        "&a x",
        "<<",
        "=",
        "? a",
        "- a",
        "|\n  x",
        ">-\n x",
    ),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\U00110000"',
        '"\\x1b[31m"',
        '"\\n::error::x"',
        "'",
        '"',
        "[",
        "]",
        "{",
        "}",
        "[[",
        "`",
        "@",
        "%",
    ),
    *("../../../etc/passwd", "/", "~/x", "/dev/zero", "file:///x", "http://127.0.0.1:9/x.zip", "a/" * 3000, "x" * 300),
    *("é", "\u202e", "\x85", "\ufeff", "\x07", "\t", " ", "#", "---", "...", "a: b: c", "[a, b", "{a: b", "{[1]: 2}"),
)
"""What may stand in the place of a value or of a key."""
STARTS = ("", "%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! tag:x,2000:\n---\n", "\ufeff", "---\n---\n", "\t")
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**19, 10**400, 1.5, -0.0, 1e308, 5e-324, float("nan")),
    *(float("inf"), "", "x", "0", "int8", "float32", "\x1b[2J", "<script>alert(1)</script>", "\0", "é" * 300, "\ud800"),
    *([], [[]], [None], ["x"], [0, 1], [1, 2, 3, 4], {}, {"": None}, {"x": []}, [{}], [[[[[[]]]]]], list(range(300))),
)


def yaml_of(content: Any, random: Random) -> bytes:
    """A mapping as YAML with a few values and keys of another kind, some of them bombs."""
    lines = list(_lines(content))
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        place = random.randrange(len(lines))
        head, _, _ = lines[place].partition(":")
        scalar = random.choice(SCALARS if random.random() < 0.2 else _sound())
        lines[place] = random.choice(
            (f"{head}: {scalar}", f"{scalar}: x", f"{head}: [{scalar}]", f"{head}: {{a: {scalar}}}")
        )
    if random.random() < 0.15:
        lines.insert(random.randrange(len(lines) + 1), random.choice(YAML_BOMBS)(random))
    if random.random() < 0.1:
        random.shuffle(lines)
    text = random.choice(STARTS if random.random() < 0.1 else [""]) + random.choice(
        ("\n", "\n", "\n", "\r\n", "\r")
    ).join(lines)
    encoding = random.choice(("utf-8",) * 12 + ("utf-16", "utf-32", "latin-1"))
    made = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    return mutated(made, random) if random.random() < 0.15 else made


@cache
def _sound() -> tuple[str, ...]:
    """Those of the scalars that leave the rest of the text as it is."""
    return tuple(each for each in SCALARS if _is_sound(f"a: {each}\nb: 1"))


def _is_sound(text: str) -> bool:
    try:
        return len(getattr(yaml.compose(text, yaml.SafeLoader), "value", ())) == 2
    except (yaml.YAMLError, ValueError):
        return False


def _lines(content: Any) -> Iterator[str]:
    for key, value in content.items():
        yield f"{key}: {json.dumps(value)}"


def _aliases(random: Random) -> str:
    wide, names = random.choice((2, 10, 100)), "bcdefghijklmnop"
    first = random.choice(("a0: &a [x, x]", "a0: &a {x: 1}", "a0: &a x"))
    form = random.choice(("[{}]", "{{<<: [{}]}}", "[{}, x]"))
    rows = [
        f"{name}0: &{name} {form.format(', '.join([f'*{before}'] * wide))}"
        for before, name in zip("a" + names, names, strict=False)
    ]
    return "\n".join([first, *rows])


YAML_BOMBS = (
    _aliases,
    lambda random: "z: " + "[" * random.choice((30, 40, 1000, 100_000)),
    lambda random: "z: " + "{a: " * random.choice((30, 40, 5000)) + "}" * 30,
    lambda random: "\n".join(" " * i + "a:" for i in range(random.choice((30, 100, 600)))),
    lambda random: "z: " + "- " * random.choice((30, 5000)) + "a",
    lambda random: "nc: " + "9" * random.choice((18, 64, 65, 5000, 500_000)),
    lambda random: "z: &z [*z, *z]",
    lambda random: "<<: *z\nz: &z {<<: *z}",
    lambda random: "? " * random.choice((20, 3000)) + "a",
    lambda random: "z: !" + "a" * random.choice((10, 100_000)) + " x",
    lambda random: "&" + "a" * 5000 + " z: *" + "a" * 5000,
    lambda random: "names: [" + "x, " * random.choice((100, 30_000, 60_000)) + "]",
    lambda random: "names: {" + "".join(f"{i}: x, " for i in range(random.choice((100, 20_000)))) + "}",
    lambda random: "z: " + "'" * random.choice((3, 100_001)),
    lambda random: 'z: "' + "\\" * random.choice((3, 100_001)),
    lambda random: "z: " + "1" + ":1" * random.choice((30, 100_000)),
    lambda random: "#" * 200_000,
    lambda random: "z: " + "a: " * 5000,
    lambda random: "".join(f"{'a' * (i % 50)}{i}: {i}\n" for i in range(5000)),
)


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values are in JSON."""
    yield at
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from places(value, (*at, key))


def json_of(content: Any, random: Random) -> bytes:
    """JSON with a few values of other types, keys that are missing or new, or its bytes changed."""
    if random.random() < 0.15:
        return mutated(json.dumps(content).encode(), random)
    if random.random() < 0.03:
        return random.choice(JSON_BOMBS)
    made, every = copy.deepcopy(content), list(places(content))[1:]
    for _ in range(random.choice((1, 1, 1, 2, 4, 10))):
        _change(made, random.choice(every), random)
    return json.dumps(made).encode()


def _change(made: Any, at: Sequence[Any], random: Random) -> None:
    """Another value at a place, where it is still there."""
    try:
        for key in at[:-1]:
            made = made[key]
        old = made[at[-1]]
    except (KeyError, IndexError, TypeError):
        return
    if not isinstance(made, dict | list):
        return
    chance = random.random()
    if chance < 0.1:
        del made[at[-1]]
    elif chance < 0.15 and isinstance(made, dict):
        made[random.choice(("", "x", "schema", "\x1b"))] = made.pop(at[-1])
    elif chance < 0.35:
        made[at[-1]] = _near(old, random)
    else:
        made[at[-1]] = copy.deepcopy(random.choice(JSON_VALUES))


def _near(old: Any, random: Random) -> Any:
    """A value of the same type."""
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int):
        return random.choice((old + 1, -old, old * 1000, 0, 2**53, float(min(old, 2**63))))
    if isinstance(old, float):
        return random.choice((-old, old * 1e300, old / 1e300, 0.0, float("nan"), int(old) if abs(old) < 1e9 else 0))
    if isinstance(old, str):
        return random.choice((old + "x", old.upper(), old * 50, old[:-1], old + "\n", "\u202e" + old))
    if isinstance(old, list):
        return random.choice((old + old, old[:-1], old[::-1], [old], {str(i): each for i, each in enumerate(old)}))
    return random.choice(({**old, "x": 1}, list(old.items()), {}, [old]))


JSON_BOMBS = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[" * 900 + b"]" * 900,
    b'{"schema": ' + b"9" * 100_000 + b"}",
    b'{"schema": 1e' + b"9" * 400 + b"}",
    b'{"schema": 1, "schema": 2}',
    b'"' + b"\\ud800" * 10_000 + b'"',
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"",
    b"null",
    b"[]",
    b"NaN",
    b"{}",
    b"[" + b"0," * 500_000 + b"0]",
)
