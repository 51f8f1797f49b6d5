"""The maths of transfer: tensors in, tensors out. No database, no HTTP."""
