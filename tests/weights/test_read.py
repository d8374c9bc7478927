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


def crafted():
    """Arrays whose bytes are no numbers: pointers, records, lies about their size."""
    pointers = Makes(np.ndarray, (1, 2), np.dtype("O"), b"A" * 16)
    longer = Makes(np.dtype, "f4", False, True, state=(3, "<", None, None, None, 4096, 4, 0))
    reconstruct = np.zeros(0).__reduce__()[0]

    def array(shape, dtype, raw):
        return Makes(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, raw))

    return [
        {"a": Makes(OrderedDict, pointers)},
        {"a": array((1, 2), np.dtype("O"), b"A" * 16)},
        {"a": array((1,), np.dtype([("x", "O")]), b"A" * 8)},
        {"a": array((2,), np.dtype("f4"), b"1234")},
        {"a": array((10**13,), np.dtype("f4"), b"1234")},
        {"a": Makes(np.ndarray, (10**13,), np.dtype("f4"))},
        {"a": array((2,), longer, b"12345678")},
    ]


@pytest.mark.parametrize("number", range(len(crafted())))
def test_crafted_arrays_are_refused_or_read_as_they_are(number, tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(crafted()[number], protocol=2))
    code = f"""
import pathlib
from retinanet.weights.loading import read_tensors
try:
    print(read_tensors(pathlib.Path({str(path)!r})))
except ValueError as error:
    print("refused")
"""
    # In a process of its own: what goes wrong here ends it.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    harmless = number == len(crafted()) - 1  # its size is not believed
    assert ("refused" in done.stdout) == (not harmless), done.stdout


def test_arrays_in_any_order_and_byte_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = {"fortran": np.asfortranarray(array), "big": array.astype(">f4"), "c": array}
    for protocol in (2, 5):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(made, protocol=protocol))
        for tensor in read_tensors(tmp_path / "m.pkl").values():
            assert torch.equal(tensor, torch.from_numpy(array))


def test_the_contents_tell_what_a_file_is(tmp_path):
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
    zeros = Makes(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")
    zeros.parts = (*zeros.parts[:2], (1, (10**10,), np.dtype("u1"), False, 10**10))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(zeros, protocol=2))
    with pytest.raises(ValueError, match="no file of tensors"):
        read_tensors(tmp_path / "m.pkl")


def test_a_file_cannot_change_its_reader(tmp_path):
    # BUILD on what a global names: sets attributes of a function or a class.
    for name in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"ccollections\nOrderedDict\n"):
        for state in (b"N}X\x04\x00\x00\x00codeK\x01s\x86", b"}X\x04\x00\x00\x00codeK\x01s"):
            (tmp_path / "m.pkl").write_bytes(b"\x80\x02" + name + state + b"b.")
            with pytest.raises(ValueError, match="TypeError|AttributeError"):
                read_tensors(tmp_path / "m.pkl")


@pytest.mark.parametrize(
    "contents",
    [
        {"model": {3: torch.ones(2)}},
        {"format": torch.ones(2)},
        {"format": 1, "model": 3, "settings": 4, "classes": 5},
    ],
)
def test_nonsense_in_the_right_places_is_one_error(contents, tmp_path):
    torch.save(contents, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt (is no checkpoint|has format|holds)"):
        read_trained(tmp_path / "m.pt")


def test_what_is_refused_is_named(tmp_path):
    torch.save({"a": Makes(os.system, "true")}, tmp_path / "m.pth")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Makes(os.system, "true")))
    for name in ("m.pth", "m.pkl"):
        with pytest.raises(ValueError, match="it wants (posix|nt).system"):
            read_trained(tmp_path / name)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_a_pickle_become_tensors(tmp_path, protocol):
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float64(2), "c": [3]}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": arrays, "name": "x"}, protocol))
    read = read_tensors(tmp_path / "m.pkl")
    assert read["name"] == "x"
    assert torch.equal(read["model"]["a"], torch.arange(6.0).reshape(2, 3))
    assert read["model"]["b"].item() == 2
    assert read["model"]["c"] == [3]


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


def test_strangers_are_named(tmp_path):
    torch.save({"state_dict": {"encoder.weight": torch.ones(1)}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="no checkpoint of a RetinaNet.*encoder.weight"):
        read_trained(tmp_path / "m.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint .*none.pth"):
        read_trained(tmp_path / "none.pth")
