"""Attacks on CT series: lesions put in, taken out or copied, as DICOM that says so."""
