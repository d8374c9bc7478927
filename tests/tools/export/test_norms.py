"""Group norm by means of means: torch's values, in other runtimes too."""

import pytest
import torch
from torch import nn

from retinanet.tools.export.norms import GroupNorm, replace_group_norms


def norm_of(channels, groups):
    norm = nn.GroupNorm(groups, channels)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm.eval()


@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 64, 1, 1), (3, 8, 1, 9), (1, 256, 40, 30)])
def test_it_computes_what_torch_does(shape):
    norm = norm_of(shape[1], 8)
    x = torch.randn(shape).relu() * 3 + 1
    torch.testing.assert_close(GroupNorm(norm)(x), norm(x), atol=1e-5, rtol=1e-5)


def test_all_in_a_module_are_replaced_and_nothing_else():
    inner = nn.Sequential(norm_of(16, 4), nn.ReLU())
    module = nn.Sequential(nn.Conv2d(16, 16, 1), inner, norm_of(16, 8), nn.BatchNorm2d(16)).eval()
    x = torch.randn(2, 16, 6, 6)
    before = module(x)
    replace_group_norms(module)
    kinds = [type(part) for part in module.modules()]
    assert nn.GroupNorm not in kinds
    assert kinds.count(GroupNorm) == 2
    assert kinds.count(nn.BatchNorm2d) == 1
    torch.testing.assert_close(module(x), before)


@pytest.mark.slow
def test_large_groups_stay_exact_in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    norm, x = norm_of(16, 2), torch.randn(1, 16, 400, 320).relu() * 3 + 1
    exact = norm.double()(x.double()).float()
    path = tmp_path / "norm.onnx"
    with torch.no_grad():
        module = GroupNorm(norm.float()).eval()
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), exact, atol=1e-5, rtol=0)
