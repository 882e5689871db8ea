"""The service around `seg_loss`: HTTP, command line, files and pictures."""
