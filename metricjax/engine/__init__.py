"""What the doors `anchors` and `prototypes` lead to: pairs of rows, panels, blocks of classes, reductions, devices."""
