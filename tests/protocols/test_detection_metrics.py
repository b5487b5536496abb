"""Metrics of boxes and masks against pycocotools, detectron2, py-faster-rcnn, scikit-learn and by hand."""

import numpy as np
import pytest

from ssljax.protocols import segmentation
from ssljax.protocols.detection import Found, Truth, average_precision, coco, coco_curves, curve, voc

POINTS = {"11point": 11, "allpoint": 0}


def of_voc(g, shift):
    t, f = g["truth"].astype(np.float64), g["found"].astype(np.float64)
    truth = Truth(t[:, 0], t[:, 1], t[:, 3:] - np.array([shift, shift, 0, 0]), t[:, 2] > 0, t[:, 0])
    return truth, Found(f[:, 0], f[:, 1], f[:, 3:], f[:, 2])


def of_coco(g):
    t, f = g["truth"].astype(np.float64), g["found"].astype(np.float64)
    corners = lambda x: np.concatenate([x[:, 2:4], x[:, 2:4] + x[:, 4:6]], axis=1)
    truth = Truth(t[:, 0], t[:, 1], corners(t), t[:, 6] > 0, t[:, 7])
    return truth, Found(f[:, 0], f[:, 1], corners(f), f[:, 6])


@pytest.mark.parametrize("points", POINTS)
def test_voc_equals_detectron2(golden, points):
    g = golden("detection_metrics")["voc"]
    truth, found = of_voc(g, shift=1)  # its objects are 1-based
    result = voc(truth, found, classes=3, points=POINTS[points])
    assert list(result) == ["AP", "AP50", "AP75"]
    np.testing.assert_allclose(list(result.values()), g[points], rtol=1e-6)


def test_the_curve_of_a_class_equals_py_faster_rcnn(golden):
    g = golden("detection_metrics")["vocdet"]
    truth, found = of_voc(g, shift=0)
    recall, precision = curve(truth, found, 0, 0.7)
    np.testing.assert_allclose(recall, g["rec"])
    np.testing.assert_allclose(precision, g["prec"])
    for label in range(2):
        for t, above in enumerate((0.5, 0.7)):
            both = [average_precision(*curve(truth, found, label, above), points=n) for n in POINTS.values()]
            np.testing.assert_allclose(both, g["ap"][label, t])


def test_coco_equals_pycocotools(golden):
    g = golden("detection_metrics")["coco"]
    truth, found = of_coco(g)
    result = coco(truth, found, labels=range(1, 5))
    np.testing.assert_allclose(list(result.values()), 100 * g["stats12"], rtol=1e-6)
    precision, recall = coco_curves(truth, found, labels=range(1, 5))
    assert np.isnan(recall).any()  # a class without objects
    np.testing.assert_allclose(
        np.nan_to_num(precision[0, ..., 0, -1], nan=-1), g["precision_at_50"], atol=1e-6
    )
    np.testing.assert_allclose(np.nan_to_num(recall[..., 0, -1], nan=-1), g["recall"], atol=1e-6)


SQUARES = np.array([[0.0, 0, 20, 20], [40, 40, 80, 90], [5, 5, 200, 200]])
NUMBERS = np.arange(3)


def test_perfect_boxes_have_100_and_none_have_0():
    truth = Truth(NUMBERS, NUMBERS, SQUARES, np.zeros(3, bool), np.array([400.0, 2000, 38025]))
    found = Found(NUMBERS, NUMBERS, SQUARES, np.array([0.9, 0.5, 0.7]))
    for points in (11, 0):
        perfect = voc(truth, found, classes=3, points=points)
        np.testing.assert_allclose(list(perfect.values()), 100.0)
    np.testing.assert_allclose(list(coco(truth, found, labels=range(3)).values()), 100.0)
    none = Found(*(x[:0] for x in found))
    assert set(voc(truth, none, classes=3).values()) == {0.0}
    assert coco(truth, none, labels=range(3))["AP"] == 0.0
    assert np.isnan(coco(truth, none, labels=[3])["AP"])
    with pytest.raises(ValueError, match="class 3 of 4 has no object that counts"):
        voc(truth, found, classes=4)


def test_a_second_detection_of_a_box_is_wrong_and_a_difficult_box_counts_nowhere():
    zeros = np.zeros(3, int)
    truth = Truth(zeros, zeros, SQUARES, np.array([False, False, True]), np.ones(3))
    found = Found(zeros, zeros, SQUARES[[0, 0, 2]], np.array([0.9, 0.8, 0.7]))
    recall, precision = curve(truth, found, 0, 0.5)
    np.testing.assert_allclose(recall, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(precision, [1, 0.5, 0.5])
    np.testing.assert_allclose(average_precision(recall, precision), 6 / 11)  # recalls 0 to .5
    np.testing.assert_allclose(average_precision(recall, precision, points=0), 0.5)


def test_the_confusion_of_all_pixels_equals_scikit_learn(golden):
    g = golden("detection_metrics")["miou"]
    matrix = segmentation.confusion(g["gt"], g["pred"], classes=6)
    np.testing.assert_array_equal(matrix, g["confusion"])
    np.testing.assert_allclose(segmentation.iou(matrix), g["iou_nan_where_absent"])
    scores = segmentation.scores(matrix)
    np.testing.assert_allclose([scores["mIoU"], scores["pixel_accuracy"]], 100 * g["means"])


def test_pixels_are_pooled_over_images_and_padding_counts_nowhere():
    labels = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    predictions = np.array([[0, 0, 0, 0], [1, 1, 0, 1]])
    parts = [segmentation.confusion(a, b, classes=3) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(sum(parts), [[3, 0, 0], [1, 2, 0], [0, 0, 0]])
    scores = segmentation.scores(sum(parts))
    np.testing.assert_allclose(scores["mIoU"], 100 * (3 / 4 + 2 / 3) / 2)  # class 2 is absent
    np.testing.assert_allclose(scores["class_accuracy"], 100 * (1 + 2 / 3) / 2)
    constant = segmentation.confusion(labels * 0 + 1, labels * 0 + 1, classes=3)
    assert segmentation.scores(constant)["mIoU"] == 100.0
    with pytest.raises(ValueError, match="a label is 8, but there are 3 classes"):
        segmentation.confusion(labels[:1] + 7, predictions[:1], classes=3)
    with pytest.raises(ValueError, match="no pixel has a label"):
        segmentation.scores(np.zeros((3, 3), int))
