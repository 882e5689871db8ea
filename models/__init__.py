"""Parts of segmentation networks. Imports torch, and neither `seg_loss` nor `app`."""
