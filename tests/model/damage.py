"""Damage to files, by a seed: bytes that are changed, cut and put in, JSON with other values."""

import copy
import json

VALUES = (None, True, -1, 0, 1.5, 10**12, "", "x" * 5000, "../x", "\ud800", "\0", [], {}, [[1]])
# What the json module does not write, put in for a mark.
RAW = ("1" * 400, "NaN", "1e999", "-Infinity", "[" * 3000 + "]" * 3000)
MARK = "\ue000"


def damaged(rng, data, others):
    """One kind of damage, and what has become of a file.

    Args:
        rng: a random.Random.
        data: the bytes of the file.
        others: contents of other files, of which one may take the place.
    """
    kinds = [flip, cut, insert, blank, double]
    if data[:1] in b"{[":
        kinds += [other_value] * 5 + [other_name] * 2
    kind = rng.choice(kinds)
    if rng.random() < 0.03:
        return "renamed", rng.choice(others)
    return kind.__name__, kind(rng, data)


def flip(rng, data):
    """Change some bytes, in half of the cases only where headers stand."""
    changed, end = bytearray(data), len(data) if rng.random() < 0.5 else min(len(data), 300)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def insert(rng, data):
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice((1, 2, 7, 100))) + data[place:]


def blank(rng, data):
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 4, 16, 1000)))
    return data[:start] + bytes([rng.choice((0, 255))]) * (end - start) + data[end:]


def double(rng, data):
    start = rng.randrange(len(data))
    end = start + rng.choice((1, 4, 16, 1000))
    return data[:end] + data[start:]


def other_value(rng, data):
    """Give a value at any depth another one, mostly of another type."""
    content = json.loads(data)
    place = rng.choice(_places(content))
    if place is None:
        return json.dumps(rng.choice(VALUES)).encode()
    above, key = place
    number = isinstance(above[key], (int, float)) and rng.random() < 0.5
    choices = (above[key] * 2 + 1, -above[key], above[key] // 2) if number else VALUES
    above[key] = MARK if rng.random() < 0.2 else copy.deepcopy(rng.choice(choices))
    return json.dumps(content).replace(json.dumps(MARK), rng.choice(RAW)).encode()


def other_name(rng, data):
    """Take away a key or an entry, or give a key another name."""
    content = json.loads(data)
    place = rng.choice(_places(content))
    if place is None:
        return b"{}"
    above, key = place
    value = above.pop(key)
    if isinstance(above, dict) and rng.random() < 0.5:
        above[f"{key}s"] = value
    return json.dumps(content).encode()


def _places(content):
    """Every place in a JSON value, as what holds it and its key; None is the whole.

    Half of them stand near the top, where the rest of a large file would bury them.
    """
    near, deep, waiting = [None], [], [(content, 0)]
    while waiting:
        above, depth = waiting.pop()
        if isinstance(above, (dict, list)):
            for key in above if isinstance(above, dict) else range(len(above)):
                (near if depth < 2 else deep).append((above, key))
                waiting.append((above[key], depth + 1))
    return near * max(1, len(deep) // len(near)) + deep
