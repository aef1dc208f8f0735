"""Predict with exported models: numpy, SimpleITK, nibabel and onnxruntime, without torch."""
