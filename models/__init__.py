"""Segmentation networks and their weights. Imports torch and `seg_loss`, not `app`."""
