"""CT in DICOM: reading what may be used, writing what was made."""
