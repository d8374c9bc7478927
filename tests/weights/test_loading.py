"""Files of anybody: whose they are, what is refused, and that nothing in them runs."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.weights.loading import read_tensors
from retinanet.weights.read import read_trained

ROOT = Path(__file__).resolve().parents[2]


class Makes:
    """Pickles as a call of a function, which may be numpy's."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self):
        return self.parts


def array(shape, dtype, raw):
    """As numpy pickles an array, with bytes that may be anything."""
    reconstruct = np.zeros(0).__reduce__()[0]
    return Makes(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, raw))


def crafted():
    """Arrays whose bytes are no numbers: pointers, records, lies about their size."""
    longer = Makes(np.dtype, "f4", False, True, state=(3, "<", None, None, None, 4096, 4, 0))
    return [
        {"a": Makes(OrderedDict, Makes(np.ndarray, (1, 2), np.dtype("O"), b"A" * 16))},
        {"a": array((1, 2), np.dtype("O"), b"A" * 16)},
        {"a": array((1,), np.dtype([("x", "O")]), b"A" * 8)},
        {"a": array((2,), np.dtype("f4"), b"1234")},
        {"a": array((10**13,), np.dtype("f4"), b"1234")},
        {"a": Makes(np.ndarray, (10**13,), np.dtype("f4"))},
        array((10**10,), np.dtype("u1"), 10**10),
        {"a": array((2,), longer, b"12345678")},  # harmless: its size is not believed
    ]


def test_crafted_arrays_are_refused_or_read_as_they_are(tmp_path):
    for number, content in enumerate(crafted()):
        (tmp_path / f"{number}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    code = """
import pathlib, sys
from retinanet.weights.loading import read_tensors
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        print(read_tensors(path))
    except ValueError as error:
        print("refused")
"""
    # In a process of its own: what goes wrong here ends it.
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert lines == ["refused"] * (len(crafted()) - 1)
    assert last.startswith("{'a': tensor(")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_a_pickle_become_tensors(tmp_path, protocol):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"c": values, "fortran": np.asfortranarray(values), "big": values.astype(">f4")}
    others = {"number": np.float64(2), "list": [3], "ordered": OrderedDict(a=values)}
    contents = {"model": arrays | others, "name": "x"}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(contents, protocol))
    read = read_tensors(tmp_path / "m.pkl")
    assert read["name"] == "x"
    model = read["model"]
    for tensor in (*(model[name] for name in arrays), model["ordered"]["a"]):
        assert torch.equal(tensor, torch.from_numpy(values))
    assert (model["number"].item(), model["list"]) == (2, [3])


def test_a_pickle_of_python_2_is_read(tmp_path):
    # As Python 2 wrote numpy.zeros(2, 'float32') with protocol 2: the bytes are a str.
    content = (
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01aq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04"
        b"cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\ncnumpy\n"
        b"dtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\rRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x11tq\x12bss."
    )
    (tmp_path / "m.pkl").write_bytes(content)
    assert torch.equal(read_tensors(tmp_path / "m.pkl")["model"]["a"], torch.tensor([1.0, 2.0]))


def test_the_contents_decide_what_a_file_is(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.pkl")
    (tmp_path / "numpy.pth").write_bytes(pickle.dumps({"a": np.ones(2, np.float32)}))
    for name in ("torch.pkl", "numpy.pth"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], torch.ones(2)), name


def test_a_small_file_stays_small(tmp_path):
    nested = [0]
    for _ in range(100):
        nested = [nested, nested]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": nested}}))
    with pytest.raises(ValueError, match="is no checkpoint of a RetinaNet"):
        read_trained(tmp_path / "m.pkl")
    loop = []
    loop.append(loop)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(loop))
    assert len(read_tensors(tmp_path / "m.pkl")) == 1


def test_a_file_cannot_change_its_reader(tmp_path):
    # BUILD on what a global names: sets attributes of a function or a class.
    for name in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"ccollections\nOrderedDict\n"):
        for state in (b"N}X\x04\x00\x00\x00codeK\x01s\x86", b"}X\x04\x00\x00\x00codeK\x01s"):
            (tmp_path / "m.pkl").write_bytes(b"\x80\x02" + name + state + b"b.")
            with pytest.raises(ValueError, match="TypeError|AttributeError"):
                read_tensors(tmp_path / "m.pkl")
    state = OrderedDict(a=torch.ones(1))
    state.get = 1  # in the way of a method
    torch.save(state, tmp_path / "m.pth")
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02ccollections\nOrderedDict\n)R}U\x03getK\x01sb.")
    for name in ("m.pth", "m.pkl"):
        with pytest.raises(ValueError, match="a dict with attributes"):
            read_trained(tmp_path / name)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"model": {3: torch.ones(2)}}, r"m\.pt is no checkpoint"),
        ({"format": torch.ones(2)}, r"m\.pt has format"),
        ({"format": 1, "model": 3, "settings": 4, "classes": 5}, r"m\.pt holds"),
        ({"a": Makes(os.system, "true")}, "it wants (posix|nt).system"),
        ({"state_dict": {"encoder.weight": torch.ones(1)}}, "of a RetinaNet.*encoder.weight"),
    ],
)
def test_what_is_no_model_is_one_error_that_names_it(contents, message, tmp_path):
    torch.save(contents, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=message):
        read_trained(tmp_path / "m.pt")


def test_refused_globals_of_a_pickle_and_missing_files_are_named(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Makes(os.system, "true")))
    with pytest.raises(ValueError, match="it wants (posix|nt).system"):
        read_trained(tmp_path / "m.pkl")
    with pytest.raises(FileNotFoundError, match="no checkpoint .*none.pth"):
        read_trained(tmp_path / "none.pth")
