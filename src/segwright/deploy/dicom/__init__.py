"""DICOM series as cases, and segmentations as DICOM objects; needs the extra `dicom`."""
