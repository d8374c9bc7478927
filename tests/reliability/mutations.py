"""Ways to damage an annotation file: its values, its text, its bytes."""

import copy
import json
import math


def box(number, image, category, bbox, **more):
    area = bbox[2] * bbox[3]
    record = {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
    return record | {"area": area, "iscrowd": 0} | more


def good_file():
    """Small, with everything a file may have: crowds, empty images, boxes over the edge."""
    names = ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
    return {
        "info": {"description": "x", "year": 2026},
        "images": [
            {"id": 10 * i + 3, "file_name": name, "height": 96, "width": 128}
            for i, name in enumerate(names)
        ],
        "annotations": [
            box(1, 3, 7, [10, 12, 40, 40]),
            box(2, 3, 2, [60.5, 30.25, 20, 12.5]),
            box(3, 3, 7, [12, 14, 40, 40]),
            box(4, 13, 2, [0, 0, 127, 95]),
            box(5, 13, 2, [100, 60, 60, 60]),
            box(6, 13, 7, [5, 5, 4, 4], segmentation=[[5, 5, 9, 5, 9, 9]]),
            box(7, 23, 90, [30, 30, 50, 40], iscrowd=1),
            box(8, 23, 90, [31, 31, 20, 20]),
            box(9, 43, 90, [1, 1, 30, 30], area=450.5),
            box(10, 43, 7, [1, 1, 30, 30]),
            box(11, 43, 7, [40, 40, 33.3, 17.7]),
        ],
        "categories": [
            {"id": number, "name": name} for number, name in ((7, "square"), (2, "bar"), (90, "u"))
        ],
    }


ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 90, 0.0, -0.0, 1.0, 1.5, -3.5, 1e-320, 1e9, 1e200,
    1.8e308, 2**31, 2**31 - 1, 2**63 - 1, 2**63, -(2**63), 10**400, math.nan, math.inf, -math.inf,
    10**15, "", " ", "x", "0", "7", "nan", "a.png", "A.PNG", "../a.png", "/etc/passwd",
    "..\\a.png", "C:a.png", "a\0.png", "a\nb", "\x1b[2J", "\ud800", "\udcff.png", "\u202e",
    "\u732b", "x" * 5000, "./a.png", [], [[]], [1], [1, 2, 3], {}, {"id": 1}, {"id": {}},
    [None] * 4, ["1", 2, 3, 4],
]  # fmt: skip
BOXES = [
    [1, 2, 3], [1, 2, 3, 4, 5], [10, 12, 50, 52], [0, 0, 0, 0], [5, 5, 0, 9], [5, 5, 9, -9],
    [-20, -20, 10, 10], [500, 500, 10, 10], [-50, -50, 500, 500], [127.99999999, 0, 1, 1],
    [0, 0, 1e-40, 5], [1e30, 0, 5, 5], [-1e99, -1e99, 1.7e99, 1.7e99], [-1e308, 0, 1.7e308, 9],
    [math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 1, 10**400], [True, 0, 5, 5], [1, 1, 30, 30],
    [0, 0, 128, 96], [3, 3, 1e5, 1e6], ["1", 2, 3, 4], [[1], 2, 3, 4], [0.1, 0.2, 0.3, 0.4],
]  # fmt: skip
FIELDS = {
    "bbox": BOXES,
    "area": [0, -5, 1e10, 1e11, 5e-324, 1e300, None],
    "iscrowd": [0, 1, 2, True, 1.0, "1", None],
    "category_id": [2, 7, 90, 0, -1, 1, "7", 7.0, None],
    "image_id": [3, 13, 33, 0, -1, 14, "3", 3.0, None],
    "id": [0, 1, 2, 3, 10, -1, "1", 1.0, None],
    "height": [96, 128, 0, -1, 1, 2**31, 96.0, 96.5, "96"],
    "width": [96, 128, 0, -1, 1, 2**31 - 1, 128.0, "128"],
    "file_name": ["a.png", "b.png", "../a.png", "/a.png", "sub/../../a.png", ".", "sub", "e.png"],
    "name": ["square", "bar", "Square", "", " ", "_x", "$x$", "\ud800", "a\nb", "n/a"],
}


def containers(tree):
    """Every map and list below ``tree``, itself included."""
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def keys_of(container):
    return list(container) if isinstance(container, dict) else range(len(container))


def change_a_field(rng, tree):
    """The commonest mistake: a value that the field must not, or may, have."""
    kind = rng.choice(["annotations"] * 6 + ["images", "categories"])
    if not isinstance(tree.get(kind), list) or not tree[kind]:
        return
    record = rng.choice(tree[kind])
    if isinstance(record, dict) and (fields := [key for key in record if key in FIELDS]):
        field = rng.choice(fields)
        record[field] = copy.deepcopy(rng.choice(FIELDS[field]))


def set_anything(rng, tree):
    container = rng.choice([found for found in containers(tree) if found])
    container[rng.choice(keys_of(container))] = copy.deepcopy(rng.choice(ODD))


def delete_anything(rng, tree):
    container = rng.choice([found for found in containers(tree) if found])
    del container[rng.choice(keys_of(container))]


def repeat_a_record(rng, tree):
    lists = [found for found in containers(tree) if isinstance(found, list) and found]
    if lists:
        found = rng.choice(lists)
        found.insert(rng.randrange(len(found) + 1), copy.deepcopy(rng.choice(found)))


def swap_two_values(rng, tree):
    records = [found for found in containers(tree) if isinstance(found, dict) and found]
    first, second = rng.choice(records), rng.choice(records)
    a, b = rng.choice(list(first)), rng.choice(list(second))
    first[a], second[b] = second[b], first[a]


def rename_a_key(rng, tree):
    record = rng.choice([found for found in containers(tree) if isinstance(found, dict) and found])
    key = rng.choice(list(record))
    new = rng.choice([key.upper(), key + "s", key[:-1], f" {key}", "id", "bbox", "segmentation"])
    record[new] = record.pop(key)


def add_a_key(rng, tree):
    record = rng.choice([found for found in containers(tree) if isinstance(found, dict)])
    record[rng.choice(["score", "ignore", "keypoints", "", "\ud800"])] = rng.choice(ODD)


CHANGES = [change_a_field] * 16 + [set_anything, delete_anything, repeat_a_record]
CHANGES += [swap_two_values, rename_a_key, add_a_key]

# Numbers that JSON has and Python reads in its own way, or not at all.
NUMBERS = ["1e400", "-1e400", "1e-400", "9" * 5000, "007", "0x10", "1_0", "NaN", "-Infinity"]
NUMBERS += ["1e5", "-0"]
TWICE = ['"id": 5', '"bbox": [1, 1, 2, 2]', '"images": []', '"annotations": []']
DEPTHS = [60, 300, 600, 800, 900, 940, 960, 970, 980, 990, 100_000]


def change_the_text(rng, text):
    """A key that stands twice, an odd number, deep nesting, a wrong character, or more around."""

    def place_of(*starts):
        return rng.choice([i for i in range(len(text)) if text.startswith(starts, i)] or [0])

    kind = rng.choice(["twice", "number", "nest", "character", "around"])
    if kind == "twice":
        place = place_of('{"id": ', '{"info": ') + 1
        return f"{text[:place]}{rng.choice(TWICE)}, {text[place:]}"
    if kind == "number":
        place = place_of(*"0123456789")
        return text[:place] + rng.choice(NUMBERS) + text[place + 1 :]
    if kind == "nest":
        depth, place = rng.choice(DEPTHS), place_of(": ") + 2
        deep = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
        # Instead of a number, or before it as another key.
        return rng.choice([f'{text[:place]}{deep}, "x": {text[place:]}', deep])
    if kind == "character":
        place = rng.randrange(len(text))
        odd = rng.choice("{}[],:\"'\\0-.eENn\0\x01\u00e9 ")
        return text[:place] + odd + text[place + 1 :]
    around = [f"\ufeff{text}", f"\ufeff\ufeff{text}", f"{text}x", f"{text},", f"[{text}]", text * 2]
    other = [f"//\n{text}", text.replace('"', "'"), text.replace(" ", "\r\n")]
    return rng.choice([*around, *other])


def change_the_bytes(rng, content):
    """Cut, damaged, or in another encoding."""
    kind = rng.choice(["cut", "damage", "encode"])
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    if kind == "encode":
        encoding = rng.choice(["utf-16", "utf-32", "utf-16-le", "cp1252", "utf-8-sig"])
        return content.decode("utf-8", "replace").encode(encoding, "replace")
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 5, 50])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def mutated(rng):
    """The bytes of the good file after one to three changes."""
    tree = good_file()
    for _ in range(rng.choice([1, 1, 1, 1, 2])):
        rng.choice(CHANGES)(rng, tree)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.15:
        text = change_the_text(rng, text)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        content = change_the_bytes(rng, content)
    return content
