"""A typed setting, or one of a settings file, sets exactly that key or is refused."""

import dataclasses
import random
import re

import pytest
import yaml

from retinanet.checks import KEYS
from retinanet.cli.main import composer
from retinanet.training.run_directory import flatten

PREFIXES = ["", "", "", "+", "++", "~"]


@pytest.fixture(scope="module")
def train():
    with composer("train") as reader:
        yield reader


def settings_of(reader, typed):
    return flatten(dataclasses.asdict(reader.command(typed).settings))


# What a value should mean, read without Hydra.


def plain(text):
    """``text`` without the quotes around all of it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return re.sub(r"\\(['\"])", r"\1", text[1:-1]) if quoted else text


def number(text, kind):
    """One number; an error for whatever is none."""
    if not text.isascii() or "__" in text or text[:1] in "'\"":
        raise ValueError(text)
    return int(text) if kind is int else float(text)


def meant(key, text):
    """The value that ``text`` stands for; an error for what this key could not be."""
    text = text.strip()
    if text.lower() == "null":
        return None
    cast = re.fullmatch(r"(int|float|str|bool)\((.*)\)", text)
    if cast and key.type is not str:
        return {"int": int, "float": float, "str": str, "bool": bool}[cast[1]](cast[2])
    if key.type is bool:
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[
            plain(text).lower()
        ]
    if key.type is str:
        return plain(text)
    if key.type in (int, float):
        return number(text, key.type)
    if text.startswith("["):
        kind = int if key.type == list[int] else float
        return [number(part.strip(), kind) for part in text[1:-1].split(",")]
    if text.startswith("{"):
        pairs = [part.split(":") for part in text[1:-1].split(",")]
        return {plain(name.strip()): number(value.strip(), float) for name, value in pairs}
    return number(text, float)


# Names.


def misspelt(rng, name):
    """A name that no key has, one edit or one wrong place away."""
    i = rng.randrange(len(name))
    swapped = name[:i] + name[i : i + 2][::-1] + name[i + 2 :]
    edited = rng.choice([
        name[:i] + name[i + 1 :], name[:i] + rng.choice("abcxyz_") + name[i:], swapped,
        name.rpartition(".")[2] if "." in name else f"data.{name}",
        f"{rng.choice(['loss', 'model', 'optim', 'hyd', 'experiment'])}.{name}",
        name.replace(".", ".."), name.replace(".", "/"), name.replace(".", ":"),
        name.replace("a", "\u0430"),  # as Russian has it
        name.upper(), name.title(), name.replace("_", "-"), f"{name}.value", f"{name}.", f".{name}",
        f"'{name}'", f"{name}[0]", f"{name}@x", f"{name} x", f"-{name}", f"{name}\u200b",
        f"{name}\0",
    ])  # fmt: skip
    return edited if edited not in KEYS and "=" not in edited else f"{name}_"


# Values.

WORDS = [
    "0", "1", "2", "8", "-1", "-0", "+1", "007", "0x10", "1_0", "1e2", "1.", ".5", "0.5", "1e-3",
    "1E0", "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400", "1" + "0" * 400, "9" * 5000,
    "1e-400", "2147483647", "2147483648", "99999999999999999999", "0.1f", "1/2", "1,5", "1;2",
    "1 2", "1\n2", "\uff11", "\u0661", "\u00bd", "true", "True", "TRUE", "false", "yes", "no",
    "on", "off", "maybe", "null", "Null", "None", "none", "~", "", " ", "''", '""', "'1'", '"1"',
    "'0.5'", "'true'", "'null'", "two", "x", "a b", " 1 ", "\t0.5", "1#x", "1 # x", "%", "$", "$x",
    "\\", "\\n", "a\\,b", "a=b", "=", "x#y", "a'b", "'a", "a\"", "(1)", "a(b)", "range(1,3)",
    "choice(1)", "interval(0,1)", "glob(*)", "sort(2,1)", "shuffle(1,2)", "int(1)", "float(1)",
    "str(1)", "bool(1)", "json_str(1)", "tag(a,1)", "extend_list(1)", "${seed}x", "${", "$}",
    "???", "[1]", "[0.5]", "[]", "[1,2]", "[0.5,1,2]", "[32,64,128,256,512]", "[1,10,100]",
    "[1,null]", "[nan]", "[inf]", "[1,[2]]", "[1", "1]", "[,]", "[two]", "[true]", "['1']",
    "[1e400]", "[1" + "0" * 400 + "]", "{}", "{a:1}", "{a:0.5,b:0.25}", "{a:nan}", "{a:{b:1}}",
    "{a:b}", "{0.5}", "{a:1" + "0" * 400 + "}", "{a:0.5", "{'a b':0.5}", "l1", "giou", "focal",
    "sgd", "frozen", "cpu", "fp32", "stop", "resnet18", "tiny", "shapes", "L1", "giou ", "GIOU",
    "'giou'", "cpu,cuda", "runs/x", "/tmp/a,b", "C:/x", "a\udcffb", "\u732b", "..",
]  # fmt: skip


# What many keys take.
USUAL = {
    bool: ["true", "false", "yes", "Off"],
    int: ["1", "2", "8", "64", "007", "+3", "1_0"],
    float: ["0.5", "0.25", "1e-3", ".1", "1", "2.5E-1", "1e0"],
    str: ["runs/x", "a,b", "'a b'", "x=y", "/tmp/{a}", "a'b", "1", "0.50", "C:\\x", "x#y", "null"],
    list[int]: ["[1]", "[1,10,100]", "[64, 96]"],
    list[float]: ["[0.5]", "[0.5,1]", "[1,2,3,4,5]", "[1e-3, .5]"],
}
ALPHAS = ["0.5", "[0.25,0.5]", "{a:0.5,b:0.25}", "{'a b':0.5}", "null", "1"]


def any_text(rng, key):
    """Something to type after the equal sign, often something that the key takes."""
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    if key.limit and key.limit.choices:
        return rng.choice(key.limit.choices)
    return rng.choice(USUAL.get(key.type, ALPHAS))


def same(value, expected):
    """Equal, and a number where a number was meant: true is no 1."""
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[k], expected[k]) for k in value)
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def checked(reader, typed, before, named):
    """Whether a command is refused, in one line; if not, ``named`` (key -> text) alone may differ.

    ``before`` are the settings without it.
    """
    try:
        after = settings_of(reader, typed)
    except ValueError as error:
        assert "\n" not in str(error), (typed, str(error))
        assert str(error).strip(), typed
        return True
    assert after.keys() == before.keys()
    changed = {key for key in after if not same(after[key], before[key])}
    assert changed <= {*named, "output_dir"}, (typed, changed)
    for key, text in named.items():
        expected = meant(KEYS[key], text)
        if key == "output_dir" and expected is None:
            expected = before[key]  # the name made from the command
        assert same(after[key], expected), (typed, after[key])
    return False


def test_no_mutated_override_is_ignored(train, times, tally):
    rng, before = random.Random(0), settings_of(train, [])
    count, misspelt_names, refused = times(500, 500), 0, 0
    for number in range(count):
        name, prefix = list(KEYS)[number % len(KEYS)], rng.choice(PREFIXES)
        text = any_text(rng, KEYS[name])
        if rng.random() < 0.4:
            typed = [f"{prefix}{misspelt(rng, name)}={rng.choice(['1', 'x', 'null', text])}"]
            assert checked(train, typed, before, {}), typed
            misspelt_names += 1
            continue
        given = {name: text}
        if rng.random() < 0.2:  # a right one beside it
            given = {"loss.gamma": "0.25", **given}
        typed = [f"{prefix if key == name else ''}{key}={value}" for key, value in given.items()]
        is_refused = checked(train, typed, before, given)
        assert is_refused or prefix != "~"
        refused += is_refused
    valued = count - misspelt_names
    tally(
        f"mutated overrides: {count} commands, {misspelt_names} misspelt names all refused, of "
        f"{valued} values {refused} refused and {valued - refused} set exactly, 0 ignored"
    )


def test_every_key_takes_what_is_typed(train, tally):
    before, taken = settings_of(train, []), set()
    for name, key in KEYS.items():
        usual = (
            key.limit.choices if key.limit and key.limit.choices else USUAL.get(key.type, ALPHAS)
        )
        for text in usual:
            differs = not same(before[name], meant(key, text))
            if not checked(train, [f"{name}={text}"], before, {name: text}) and differs:
                taken.add(name)
                break
    always = {name for name, key in KEYS.items() if not key.read}
    # These go with other settings, which would have to be typed too.
    assert len(taken & always) > 0.85 * len(always), always - taken
    tally(f"keys set to another value: {len(taken)} of {len(KEYS)}, and nothing else with them")


def test_a_mutated_choice_is_refused_or_made(train, tally):
    rng, refused = random.Random(1), 0
    while refused < 100:
        group = rng.choice(list(train.choices))
        name = rng.choice(train.choices[group])
        altered = [misspelt(rng, name), f"[{name}]", f"{name},{name}", f"{name}.yaml", f"{name}/"]
        altered += [f"../{group}/{name}", f"{group}/{name}", f"{{{name}:1}}"]
        wrong = rng.choice([*altered, "null", "", "''", "true", "0", "glob(*)"])
        if plain(wrong) == name or (wrong == "null" and group == "experiment"):
            continue
        assert checked(train, [f"{rng.choice(PREFIXES)}{group}={wrong}"], {}, {}), (group, wrong)
        refused += 1
    tally(f"mutated choices: {refused} commands, all refused in one line")


# Files of the user's.


YAML_VALUES = [
    "0", "1", "0.5", "1e-3", "-1", "1e400", ".inf", ".nan", "1" + "0" * 400, "9" * 5000, "true",
    "yes", "null", "~", "", "two", "'1'", "[1]", "[0.5, 2]", "[1, 10, 100]", "[]", "{}",
    "{a: 0.5}", "{a: {b: 1}}", "0x10", "0o17", "1_000", "2026-01-01", "12:30:00",
    "!!python/object/apply:os.system [x]", "!!binary aGk=", "!!set {a}", "&x 1", "*nowhere",
    "[1", "\"a", "a: b: c", "${nowhere}", "${now:%H}", "???", "|\n  a", "runs/x", "'a,b'", "l1",
    "resnet18", "\t1", "- 1", "@x", "`x`", "%x", "#x", "\udcff",
]  # fmt: skip


def any_yaml(rng, key):
    if rng.random() < 0.4:
        return rng.choice(YAML_VALUES)
    usual = {bool: ["true", "no"], str: ["runs/x", "'1'", "null"]}.get(key.type)
    return rng.choice(usual or ["0.5", "1", "2", "1e-3", "[1, 2, 3]", "[0.5]", "null"])


def yaml_meant(key, text):
    """The value of a line of YAML, without OmegaConf."""
    value = yaml.safe_load(text)
    if key.type is float and isinstance(value, str):
        return float(value)  # YAML 1.1 wants a dot before the e
    if key.type is str and isinstance(value, int | float) and not isinstance(value, bool):
        return text.strip()
    return value


def test_no_mutated_file_is_ignored(tmp_path, times, tally):
    rng, files = random.Random(2), {}
    (tmp_path / "experiment").mkdir()
    for number in range(times(30, 200)):
        name = rng.choice(list(KEYS))
        right = rng.random() < 0.5
        text = any_yaml(rng, KEYS[name])
        written = name if right else re.sub(r"[^\w.]", "_", misspelt(rng, name))
        written += "_" * (written in KEYS and not right)
        *groups, last = written.split(".")
        lines = [f"{'  ' * depth}{group}:" for depth, group in enumerate(groups)]
        lines.append(f"{'  ' * len(groups)}{last}: {text}")
        content = "\n".join(["# @package _global_", *lines, ""])
        path = tmp_path / "experiment" / f"e{number}.yaml"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        files[number] = (name, text, right, last)
    refused = 0
    with composer("train", str(tmp_path)) as reader:
        before = settings_of(reader, [])
        for number, (name, text, right, last) in files.items():
            try:
                after = settings_of(reader, [f"experiment=e{number}"])
            except ValueError as error:
                assert "\n" not in str(error)
                named = f"e{number}.yaml" in str(error) or f"{last}: Value" in str(error)
                assert right or named or "is not valid YAML" in str(error), str(error)
                refused += 1
                continue
            assert right, (name, text)
            changed = {key for key in after if not same(after[key], before[key])}
            assert changed <= {name, "output_dir"}, (name, text, changed)
            meant = yaml_meant(KEYS[name], text)
            made = name == "output_dir" and meant is None  # then a name is made
            assert made or same(after[name], meant), (name, text, after[name])
    tally(
        f"mutated settings files: {len(files)} files, {refused} refused in one line, "
        f"{len(files) - refused} set exactly, 0 ignored"
    )
