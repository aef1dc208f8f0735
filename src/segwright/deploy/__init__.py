"""Trained models where images are: DICOM, ONNX, a server, packs to share. Each needs an extra of its own."""
