"""Metrics by name: their headings in tables, their order and their meaning."""

from __future__ import annotations

# Metric -> heading, in the order of the columns; all are shares, shown in percent.
HEADINGS = {
    "error": "error %",
    "top5_error": "top-5 error %",
    "f1_foreground": "F1+ %",
    "f1_background": "F1- %",
    "pxap": "PxAP %",
    "piou": "pIoU %",
    "max_piou": "max pIoU %",
    "max_box_acc": "MaxBoxAcc %",
    "max_box_acc_v2": "MaxBoxAccV2 %",
    "gt_known_loc": "GT-known %",
    "top1_loc": "Top-1 loc %",
    "top5_loc": "Top-5 loc %",
    "mask_area": "M+ %",
    "false_alarms": "false alarms %",
    "border_share": "border %",
    "true_border_share": "true border %",
}
# The same for what classifiers find in the regions (`minmax_entropy.engine.faithfulness`), in a table of its own.
FOUND = {
    "classifier_whole": "own: image %",
    "classifier_foreground": "own: X+ %",
    "classifier_swapped": "own: swapped %",
    "judge_whole": "judge: image %",
    "judge_foreground": "judge: X+ %",
    "judge_background": "judge: X- %",
    "rival_foreground": "rival: X+ %",
    "rival_background": "rival: X- %",
    "insertion": "insertion %",
    "deletion": "deletion %",
}
BY_CLASS = HEADINGS | {"constancy": "one place %"} | FOUND
LEGEND = (
    "error: wrong class. F1+, F1-: Dice of object and background. PxAP: pixel average precision. pIoU: IoU over all "
    "pixels, at the mask's threshold and (max) at the best one. MaxBoxAcc, MaxBoxAccV2: boxes found, at the best "
    "threshold. GT-known, Top-1, Top-5 loc: boxes found at the mask's threshold, whatever the class and with the "
    "correct class among the first 1 or 5. M+: mean mask. false alarms: images without an object whose mask is not "
    "empty. border: share of the marked pixels within 8 % of the image's border."
)
FOUND_LEGEND = (
    "own, judge: images whose class is found in the whole image, in "
    "the marked region alone (X+) and in the rest (X-), by the model's own classifier and by one that has never seen a "
    "mask. own: swapped: images cut by a mask of another class that are taken for that class. rival: what the judge "
    "finds where the rival's map is highest, in as many pixels. insertion, deletion: area under the judge's "
    "probability of the class as pixels are added or removed."
)
