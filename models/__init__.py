"""Parts of segmentation networks. Imports torch and `seg_loss`, not `app`."""
