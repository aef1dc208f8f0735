"""Prediction of whole folders of images."""
