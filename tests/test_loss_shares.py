"""Shares of the loss: by hand, and on a checkpoint."""

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from retinanet.losses import focal_loss
from scripts.loss_shares import curve, hardest_share, main, plot, shares_of, table


def test_the_hardest_share_by_hand():
    losses = torch.tensor([1.0, 1.0, 2.0, 6.0])
    assert hardest_share(losses, 0.25) == pytest.approx(0.6)
    assert hardest_share(losses, 0.5) == pytest.approx(0.8)
    assert hardest_share(losses, 0.01) == pytest.approx(0.6)  # never less than one
    assert hardest_share(torch.ones(100), 0.2) == pytest.approx(0.2)


def test_the_curve_of_equal_losses_is_the_diagonal():
    x, y = curve(torch.ones(5000))
    assert x == pytest.approx(y)
    assert (len(x), y[-1]) == (1000, 1.0)


def test_both_sides_are_told_apart_and_their_gradients_added():
    logits = torch.tensor([[2.0, -3.0], [-1.0, -2.0], [0.5, -4.0]])
    labels = torch.tensor([0, -1, -1])
    shares = shares_of(logits, labels, [0.25, 0.75], gamma=2.0)
    is_class = torch.tensor([[True, False], [False, False], [False, False]])
    loss = focal_loss(logits, is_class).sum(1)
    torch.testing.assert_close(shares.positives, loss[:1])
    torch.testing.assert_close(shares.background, loss[1:].sort().values)
    # The gradient by finite differences.
    step = 1e-3 * torch.eye(6, dtype=torch.float64).view(6, 3, 2)
    up, down = (focal_loss(logits + side, is_class.expand(6, 3, 2)) for side in (step, -step))
    slopes = (up - down).sum(dim=(1, 2)).abs()
    expected = slopes[2:].sum() / slopes.sum()
    assert shares.background_gradient[0] == pytest.approx(expected.item(), rel=1e-3)
    assert shares.background_gradient[1] < expected  # a larger alpha weighs positives


def test_larger_gammas_put_the_background_into_fewer_anchors(tmp_path):
    logits = torch.randn(5000, 3) * 2 - 4
    labels = torch.full((5000,), -1)
    labels[:20] = 1
    shares = [shares_of(logits, labels, [0.25], gamma) for gamma in (0.0, 1.0, 2.0)]
    hardest = [hardest_share(one.background, 0.01) for one in shares]
    assert hardest == sorted(hardest)
    assert hardest[2] > 2 * hardest[0]
    plot(tmp_path / "plot.png", {"step 7": shares})
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert table({"step 7": shares}, [0.25])[2].startswith("| step 7 | 0 | ")


def test_a_checkpoint_that_knows_no_data_wants_it_named(tmp_path, capsys):
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    assert main([str(tmp_path / "theirs.pth")]) == 1
    assert "theirs.pth does not say which data it was validated on" in capsys.readouterr().err


def test_another_projects_checkpoint_on_named_data(tmp_path, real_data, capsys):
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    cells = ["data=custom", f"data.root={real_data('bccd')}", "data.val_images=val"]
    cells += ["data.val_annotations=annotations/val.json", "data.train_images=train"]
    cells += ["data.train_annotations=annotations/train.json"]
    options = [str(tmp_path / "theirs.pth"), "--images", "1", "--gammas", "0", "2"]
    options += ["--alpha", "0.25", "0.75", "--plot", str(tmp_path / "plot.png")]
    assert main([*options, "--", *cells]) == 0
    assert "alpha 0.25 | background's gradient, alpha 0.75 |" in capsys.readouterr().out
