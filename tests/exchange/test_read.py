"""Files of anybody: whose they are, what is refused, and that nothing in them runs."""

import os
import pickle

import numpy as np
import pytest
import torch

from retinanet import load
from retinanet.exchange.read import read_trained
from retinanet.loading import read_tensors


class Runs:
    """Makes a folder when it is unpickled, by one of several ways to run code."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def traps(path):
    return [
        Runs(os.mkdir, path),
        Runs(os.system, f"mkdir {path}"),
        Runs(eval, f"__import__('os').mkdir({path!r})"),
        Runs(exec, f"import os; os.mkdir({path!r})"),
        Runs(torch.load, path),
        Runs(np.load, path),
        Runs(np.fromfile, path),
    ]


@pytest.mark.parametrize("number", range(len(traps(""))))
@pytest.mark.parametrize("kind", ["pkl", "pth", "legacy pth"])
def test_nothing_in_a_file_runs(kind, number, tmp_path):
    trap = traps(str(tmp_path / "ran"))[number]
    contents = {"model": {"head.cls_score.weight": trap, "a": torch.ones(1)}}
    path = tmp_path / f"model.{kind[-3:]}"
    if kind == "pkl":
        path.write_bytes(pickle.dumps({"model": {"head.cls_score.weight": trap}}))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "pth")
    for read in (read_trained, load):
        with pytest.raises(ValueError, match=r"model\.p.* is damaged or no checkpoint"):
            read(path)
    assert not (tmp_path / "ran").exists()


def test_the_traps_work_where_everything_is_unpickled(tmp_path):
    # The test above can fail.
    pickle.loads(pickle.dumps(traps(str(tmp_path / "ran"))[0]))
    assert (tmp_path / "ran").exists()


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


def test_another_trunk_is_refused(tmp_path):
    state = {
        "bbox_head.retina_cls.weight": torch.zeros(9, 8, 3, 3),
        "backbone.layer1.0.conv2.weight": torch.zeros(7, 7, 3, 3),
    }
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"its trunk, of \(1, 0, 0, 0\) blocks, is none of this"):
        read_trained(tmp_path / "m.pth")
