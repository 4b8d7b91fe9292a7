"""Lossless decoding: a draft-only adapter on a frozen AR model, which writes its answers in fewer forwards."""
